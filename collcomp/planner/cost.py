"""How long a collective takes: a law of latency, bandwidth and codec speed, corrected by what was measured.

The law is Hockney's (Parallel Computing 20, 1994) with a codec in it. An operation whose message is encoded into F
bytes takes

    steps * latency + max(wire * F / bandwidth, encodes * encode + decodes * decode)

where all links are alike, and with a `Wire` of its own for each algorithm where a topology says what each link carries;
because encoding, sending and decoding overlap (`steps`, `wire`, `encodes` and `decodes`: see `Work`). What it leaves
out (Python, copies, segments, cores that ranks share) is told by measurements, where there are any: an `overhead` that
is added, and at each measured size a factor. Between sizes factors are interpolated over the logarithm of the size.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "CALIBRATION",
    "NATIVE_CODEC",
    "CodecCost",
    "CostModel",
    "Fit",
    "Network",
    "Wire",
    "Work",
    "load_model",
    "stored_model",
    "work_of",
]

#: Names a file that `collcomp calibrate` wrote: what it measured need not be measured again.
CALIBRATION = "COLLCOMP_CALIBRATION"

#: The codec of calls that the library underneath does.
NATIVE_CODEC = "none"

_ITEMSIZE = 4


class Work(NamedTuple):
    """What the busiest rank does in one operation, as multiples of one message.

    Attributes
    ----------
    steps : float
        Messages that follow one another.
    wire : float
        Frames of the whole message that its link carries in one direction.
    encodes, decodes : float
        Passes of the codec over the whole message.
    raw : float
        Messages that its link carries in one direction as they are.
    """

    steps: float
    wire: float
    encodes: float
    decodes: float
    raw: float = 0.0


def work_of(collective: str, algorithm: str, size: int, groups: int = 1) -> Work:
    """The `Work` of an algorithm among `size` ranks; what docs/algorithms.md says of each, in numbers.

    The message is the whole vector of a reduction, a broadcast or an alltoall, one rank's block otherwise.

    Parameters
    ----------
    collective, algorithm : str
    size : int
    groups : int
        Of ``"hierarchical"``.

    Raises
    ------
    ValueError
        If nothing is known of them.
    """
    others = size - 1
    share = others / size
    if collective == "allreduce":
        members = size // groups
        inside, between = (members - 1) / members, (groups - 1) / size
        works = {
            # Rabenseifner's: halving, then doubling.
            "native": Work(2 * math.log2(size), 2 * share, 0, share),
            "direct": Work(2, 2 * share, 1, 2 * share),
            "ring": Work(2 * others, 2 * share, 1, 2 * share),
            "hierarchical": Work(4, inside + 2 * between, 1 / members, 1 - 1 / size + between, raw=inside),
            "gathered": Work(1, others, 1, others),
            "merged": Work(2, 2 * share, 1, 1 + share),
            "summed": Work(6, 2 * share, 1, 2),
            "switched": Work(2, 1, 1, 1),
        }
    elif collective == "reduce":
        works = {
            "native": Work(math.log2(size), 1, 0, share),
            "direct": Work(2, 2 * share, 1, 2 * share),
            "gathered": Work(1, others, 1, others),
            "merged": Work(2, 2 * share, 1, 1 + share),
        }
    else:
        moved = {
            "bcast": Work(2, 1, 1, 1),
            "reduce_scatter": Work(1, share, share, share),
            "alltoall": Work(1, share, share, share),
            "allgather": Work(1, others, 1, others),
            "gather": Work(1, others, 1, others),
            "scatter": Work(1, others, others, 1),
        }
        works = {name: moved[collective] for name in ("native", "direct") if collective in moved}
    if algorithm not in works:
        raise ValueError(f"algorithm: nothing is known of the time that {algorithm!r} takes for {collective!r}")
    return works[algorithm]


@dataclass(frozen=True, slots=True)
class Network:
    """What all ranks' links have in common.

    Attributes
    ----------
    latency : float
        Seconds of a step: messages of no length from each rank to those that it talks to, and all that is done for it.
    bandwidth : float
        Bytes per second of a rank's link one way, while all ranks use theirs.
    """

    latency: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Wire:
    """What an algorithm's traffic costs on a topology, on the links that are busiest.

    Attributes
    ----------
    latency : float
        Seconds of all steps.
    frame, raw : float
        Seconds for each byte of the encoded message, and for each byte of the message where it travels as it is.
    """

    latency: float
    frame: float
    raw: float = 0.0


@dataclass(frozen=True, slots=True)
class CodecCost:
    """What a codec costs on one rank while all ranks of the machine are at it.

    Attributes
    ----------
    nbytes : float
        Of a frame, for each float32 element.
    encode, decode : float
        Seconds for each float32 element; decoding adds to what is there.
    lossless : bool
        Costs go by bytes, whatever the dtype; those of a lossy codec by elements.
    """

    nbytes: float
    encode: float
    decode: float
    lossless: bool = False

    def elements(self, nbytes: int, itemsize: int) -> float:
        """How many float32 elements a message of `nbytes` in elements of `itemsize` costs as much as."""
        return nbytes / (_ITEMSIZE if self.lossless else itemsize)


@dataclass(frozen=True, slots=True)
class Fit:
    """What was measured of one collective by one algorithm with one codec.

    Attributes
    ----------
    overhead : float
        Seconds that the smallest message takes more than the law says.
    nbytes : tuple of int
        Sizes that were measured, ascending.
    factors : tuple of float
        Measured over ``overhead + law``, at each of them.
    """

    overhead: float
    nbytes: tuple[int, ...]
    factors: tuple[float, ...]

    def seconds(self, law: float, nbytes: int) -> float:
        """What the law says, corrected."""
        factor = np.interp(math.log(max(nbytes, 1)), np.log(self.nbytes), self.factors)
        return float((self.overhead + law) * factor)


@dataclass(frozen=True)
class CostModel:
    """Predicts the time of collectives among the ranks of one communicator.

    Attributes
    ----------
    size : int
        Number of ranks.
    network : Network
    codecs : mapping of str to CodecCost
        By spec.
    fits : mapping of (str, str, str) to Fit
        By collective, algorithm and codec's spec; native calls by ``"native"`` and ``"none"``.
    groups : int
        Number of groups of the ranks' layout.
    wires : mapping of str to Wire
        By algorithm, where the network is not all that is known.
    """

    size: int
    network: Network
    codecs: Mapping[str, CodecCost] = field(default_factory=dict)
    fits: Mapping[tuple[str, str, str], Fit] = field(default_factory=dict)
    groups: int = 1
    wires: Mapping[str, Wire] = field(default_factory=dict)

    def law(self, collective: str, algorithm: str, codec: str, nbytes: int, itemsize: int = _ITEMSIZE) -> float:
        """Seconds without any correction."""
        work = work_of(collective, algorithm, self.size, self.groups)
        if codec == NATIVE_CODEC:
            frame_nbytes, busy = float(nbytes), 0.0
        else:
            cost = self.codecs[codec]
            count = cost.elements(nbytes, itemsize)
            frame_nbytes = cost.nbytes * count
            busy = (work.encodes * cost.encode + work.decodes * cost.decode) * count
        wire = self.wires.get(algorithm)
        if wire is None:
            bandwidth = self.network.bandwidth
            wire = Wire(work.steps * self.network.latency, work.wire / bandwidth, work.raw / bandwidth)
        return wire.latency + max(wire.frame * frame_nbytes + wire.raw * nbytes, busy)

    def seconds(self, collective: str, algorithm: str, codec: str, nbytes: int, itemsize: int = _ITEMSIZE) -> float:
        """Predicted seconds of one operation.

        Parameters
        ----------
        collective, algorithm : str
        codec : str
            Spec of one of `codecs`, or `NATIVE_CODEC`.
        nbytes, itemsize : int
            Of the message, and of its elements.
        """
        law = self.law(collective, algorithm, codec, nbytes, itemsize)
        # Measured with float32: a message of another dtype costs as much as one of so many of these.
        count = nbytes / _ITEMSIZE if codec == NATIVE_CODEC else self.codecs[codec].elements(nbytes, itemsize)
        measured_nbytes = int(count * _ITEMSIZE)
        fit = self.fits.get((collective, algorithm, codec))
        if fit is not None:
            return fit.seconds(law, measured_nbytes)
        # As others were by the same algorithm.
        alike = [
            other.seconds(law, measured_nbytes)
            for kind, other in self.fits.items()
            if kind[:2] == (collective, algorithm)
        ]
        return float(np.exp(np.mean(np.log(alike)))) if alike else law

    def covers(self, collective: str) -> bool:
        """Whether predictions for this collective rest on more than those for others."""
        return not self.fits or any(kind[0] == collective for kind in self.fits)

    def predicts(self, collective: str, algorithm: str, codec: str) -> bool:
        """Whether all is known that this way's time depends on."""
        if codec not in self.codecs or (self.wires and algorithm not in self.wires):
            return False
        return not self.fits or any(kind[:2] == (collective, algorithm) for kind in self.fits)

    def with_measured(
        self, times: Mapping[tuple[str, str, str], Mapping[int, float]], codecs: Mapping[str, CodecCost]
    ) -> CostModel:
        """The model corrected by measured seconds, by collective, algorithm and codec, and by size."""
        known = replace(self, codecs={**self.codecs, **codecs})
        fits = {kind: known._fit(kind, of_sizes) for kind, of_sizes in times.items()}
        return replace(known, fits={**self.fits, **fits})

    def _fit(self, kind: tuple[str, str, str], times: Mapping[int, float]) -> Fit:
        sizes = sorted(times)
        laws = [self.law(*kind, nbytes) for nbytes in sizes]
        overhead = times[sizes[0]] - laws[0]  # below zero where the law asks too much of small messages
        factors = [times[nbytes] / (overhead + law) for nbytes, law in zip(sizes, laws, strict=True)]
        return Fit(overhead, tuple(sizes), tuple(factors))

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, Any]:
        """The model in JSON's types."""
        return {
            "size": self.size,
            "groups": self.groups,
            "network": asdict(self.network),
            "codecs": {spec: asdict(cost) for spec, cost in self.codecs.items()},
            "fits": [
                {"collective": collective, "algorithm": algorithm, "codec": codec, **asdict(fit)}
                for (collective, algorithm, codec), fit in self.fits.items()
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CostModel:
        """The model that `to_dict` gave."""
        try:
            fits: Sequence[Mapping[str, Any]] = data["fits"]
            return cls(
                int(data["size"]),
                Network(**data["network"]),
                {spec: CodecCost(**cost) for spec, cost in data["codecs"].items()},
                {
                    (fit["collective"], fit["algorithm"], fit["codec"]): Fit(
                        fit["overhead"], tuple(fit["nbytes"]), tuple(fit["factors"])
                    )
                    for fit in fits
                },
                int(data["groups"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"cost model: not what CostModel.to_dict writes ({error})") from None


def stored_model() -> CostModel | None:
    """The model in the file that `CALIBRATION` names; None where it names none."""
    path = os.environ.get(CALIBRATION)
    if not path:
        return None
    return load_model(path, CALIBRATION)


def load_model(path: str | Path, name: str) -> CostModel:
    """The model in a file of `collcomp calibrate`; `ValueError` names the argument `name`."""
    try:
        return CostModel.from_dict(json.loads(Path(path).read_text())["calibration"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: {str(path)!r} is no file that 'collcomp calibrate' wrote ({error})") from None
