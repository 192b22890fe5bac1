"""What the collectives of a communicator cost on it, measured by doing them.

Every rank takes part, and every rank ends with the same numbers: the slowest rank's.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from collcomp.codecs import Codec, Identity, as_codec
from collcomp.collectives import NATIVE
from collcomp.communicator import Communicator
from collcomp.diagnosis import Records
from collcomp.frame import Frame
from collcomp.planner.cost import CALIBRATION, NATIVE_CODEC, CodecCost, CostModel, Network, stored_model, work_of
from collcomp.policies import Auto

__all__ = ["QUICK", "THOROUGH", "Effort", "calibrate", "codec_cost", "recall"]

_FACTOR = 4
_FIRST_NBYTES = 8
_NETWORK_NBYTES = (1 << 16, 1 << 20)
_TILE = 1 << 20
_CODEC_COUNT = 1 << 18
_CODEC_REPEATS = 7
# The first one of so many repeats is not counted.
_WARMING = 5


@dataclass(frozen=True)
class Effort:
    """How much time measuring may take.

    Attributes
    ----------
    longest : float
        Seconds: no larger message is measured once an operation has taken so long.
    seconds : float
        To be spent on one way of doing a collective at one size.
    fewest, most : int
        Repeats, however long they take.
    largest : int
        Bytes of the largest message.
    """

    longest: float = 0.03
    seconds: float = 0.02
    fewest: int = 7
    most: int = 60
    largest: int = 32 << 20


#: What a program takes at the first call of each collective: some seconds.
QUICK = Effort()
#: What is worth to be kept in a file.
THOROUGH = Effort(longest=0.3, seconds=0.5, fewest=7, most=200, largest=64 << 20)

#: The library's own collectives: called with the buffers of ours.
Natives = Mapping[str, Callable[..., Any]]


def calibrate(
    communicator: Communicator, policy: Auto, collective: str, natives: Natives, effort: Effort = QUICK
) -> CostModel:
    """Measure what `collective` costs on `communicator`, natively and by every way of `policy`, and let it know.

    Collective, and blocking: no rank may depend on this one meanwhile.

    Parameters
    ----------
    communicator : Communicator
    policy : Auto
    collective : str
    natives : mapping of str to callable
        The collectives of the library underneath, by our names, and ``"barrier"``.
    effort : Effort

    Returns
    -------
    CostModel
        The policy's, from now on.
    """
    if communicator.size == 1:  # nothing is sent, so there is nothing to choose
        model = CostModel(1, Network(0.0, 1.0))
    else:
        with _aside(communicator):
            prober = _Prober(communicator, natives, effort)
            model = policy.model or prober.nothing()
            if not model.fits:
                model = replace(model, network=prober.network())
            ways = policy.ways(collective, model)
            codecs = prober.agreed_costs(list(dict.fromkeys(spec for _, spec in ways)))
            model = model.with_measured(prober.times(collective, ways), codecs)
    policy.learn(model)
    return model


def recall(communicator: Communicator, policy: Auto) -> None:
    """Let `policy` know what the file of ``COLLCOMP_CALIBRATION`` says of so many ranks, if all ranks have it.

    Collective.

    Raises
    ------
    ValueError
        If a rank cannot read its file; on all ranks.
    """
    with _aside(communicator):
        prober = _Prober(communicator, {}, QUICK)
        nothing = prober.nothing()
        model, problem = nothing, None
        try:
            model = stored_model() or nothing
        except ValueError as error:
            problem = error
        digest = zlib.crc32(json.dumps(model.to_dict(), sort_keys=True).encode())
        highest, lowest, broken = prober.agreed([digest, -digest, problem is not None])
    if broken:
        raise problem or ValueError(f"{CALIBRATION}: another rank cannot read its file")
    if highest == -lowest and (model.size, model.groups) == (nothing.size, nothing.groups):
        policy.learn(model)


def codec_cost(codec: Codec) -> CodecCost:
    """Speed and size of a codec on normal float32 values, on this rank."""
    values = _values(_CODEC_COUNT)
    if codec.verbatim:
        into = values.copy()
        adding = _fastest(lambda: np.add(into, values, out=into))
        return CodecCost(float(values.itemsize), 0.0, adding / values.size, lossless=True)
    frame = np.empty(codec.max_encoded_nbytes(values.size, values.dtype), np.uint8)
    nbytes = codec.encode(values, frame)
    into = np.zeros_like(values)
    encoding = _fastest(lambda: codec.encode(values, frame))
    checked = Frame.read(frame[:nbytes])
    decoding = _fastest(lambda: codec.decode_add(checked, into))
    return CodecCost(nbytes / values.size, encoding / values.size, decoding / values.size, codec.lossless)


def _fastest(do: Callable[[], Any]) -> float:
    do()  # compiles
    best = np.inf
    for _ in range(_CODEC_REPEATS):
        started = time.perf_counter()
        do()
        best = min(best, time.perf_counter() - started)
    return float(best)


def _values(count: int) -> np.ndarray:
    tile = np.random.default_rng(0).standard_normal(min(count, _TILE), dtype=np.float32)
    return np.resize(tile, count)


@contextmanager
def _aside(communicator: Communicator) -> Iterator[None]:
    """Keep what is done here out of the user's records and random numbers."""
    communicator.idle()
    records, draw = communicator.records, communicator.draw
    communicator.records = Records()
    try:
        yield
    finally:
        communicator.records, communicator.draw = records, draw


class _Prober:
    """Does collectives again and again, and times them."""

    def __init__(self, communicator: Communicator, natives: Natives, effort: Effort) -> None:
        self.communicator = communicator
        self.natives = natives
        self.effort = effort

    def nothing(self) -> CostModel:
        """A model of these ranks that knows nothing. They lie in groups only if all of them say so."""
        groups = self.communicator.groups
        highest, lowest = self.agreed([groups, -groups])
        return CostModel(self.communicator.size, Network(0.0, 1.0), groups=groups if highest == -lowest else 1)

    def agreed(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """The largest of all ranks' values, one by one."""
        array = np.array(values, np.float64)
        self.communicator.allreduce(array.copy(), array, "max", codec=Identity(), algorithm="direct")
        return array

    def agreed_costs(self, specs: Sequence[str]) -> dict[str, CodecCost]:
        """What these codecs cost on the slowest rank."""
        costs = self._told(lambda: [codec_cost(as_codec(spec)) for spec in specs])
        rows = self.agreed([number for cost in costs for number in (cost.nbytes, cost.encode, cost.decode)])
        return {
            spec: CodecCost(nbytes, encode, decode, cost.lossless)
            for spec, cost, (nbytes, encode, decode) in zip(specs, costs, rows.reshape(-1, 3).tolist(), strict=True)
        }

    def network(self) -> Network:
        """Latency and bandwidth of the ranks' links, all in use at once."""
        way, size = ("direct", Identity().spec), self.communicator.size
        latency = self._timed("alltoall", [way], _FIRST_NBYTES)[1][0]
        for nbytes in _NETWORK_NBYTES:
            sent, (seconds,) = self._timed("alltoall", [way], nbytes)
            if seconds > self.effort.longest:
                break
        moving = max(seconds - latency, seconds / 10)
        return Network(latency, work_of("alltoall", "direct", size).wire * sent / moving)

    def _told(self, do: Callable[[], Any]) -> Any:
        """What `do` gives, which only this rank does: an error of it is told to the others, whatever comes next."""
        try:
            return do()
        except Exception as error:
            self.communicator.refuse(error)
            raise

    def times(self, collective: str, ways: Sequence[tuple[str, str]]) -> dict[tuple[str, str, str], dict[int, float]]:
        """Median seconds of the slowest rank, by way and by size: natively, and in these ways."""
        all_ways = [(NATIVE, NATIVE_CODEC), *ways]
        found: dict[tuple[str, str, str], dict[int, float]] = {(collective, *way): {} for way in all_ways}
        nbytes, longest = _FIRST_NBYTES, 0.0
        while nbytes <= self.effort.largest and longest < self.effort.longest:
            sent, seconds = self._timed(collective, all_ways, nbytes)
            for way, one in zip(all_ways, seconds, strict=True):
                found[(collective, *way)][sent] = one
            longest = max(seconds)
            nbytes *= _FACTOR
        return found

    def _timed(self, collective: str, ways: Sequence[tuple[str, str]], nbytes: int) -> tuple[int, list[float]]:
        """The size that messages of about `nbytes` have, and the seconds that they take."""
        buffers = self._told(lambda: _buffers(collective, nbytes, self.communicator))
        self.agreed([0.0])  # a rank that has no room for them is heard of here, not in a native call
        return buffers[1 if collective == "scatter" else 0].nbytes, self._in_turn(collective, ways, buffers)

    def _in_turn(self, collective: str, ways: Sequence[tuple[str, str]], buffers: Sequence[Any]) -> list[float]:
        """Time all ways in turn, in orders drawn anew, so that noise and what came before hit all alike."""
        first = [self._once(collective, way, buffers) for way in ways for _ in range(2)][1::2]
        estimate = float(np.mean(self.agreed(first)))
        effort = self.effort
        repeats = int(np.clip(effort.seconds / estimate, effort.fewest, effort.most))
        rng = np.random.default_rng(repeats)
        times = np.empty((repeats, len(ways)))
        for row in times:
            for k in rng.permutation(len(ways)).tolist():
                row[k] = self._once(collective, ways[k], buffers)
        slowest = self.agreed(times.ravel()).reshape(times.shape)
        return np.median(slowest[repeats // _WARMING :], axis=0).tolist()

    def _once(self, collective: str, way: tuple[str, str], buffers: Sequence[Any]) -> float:
        algorithm, spec = way
        communicator = self.communicator
        how: dict[str, Any] = {}
        if algorithm != NATIVE:
            codec: Any = as_codec(spec)
            how = {"codec": replace(codec, feedback=False) if codec.feedback else codec, "algorithm": algorithm}
        self.natives["barrier"]()
        started = time.perf_counter()
        if algorithm == NATIVE:
            self.natives[collective](*buffers)
        else:
            communicator.run(communicator.plan(collective, *buffers, **how))
        return time.perf_counter() - started


def _buffers(collective: str, nbytes: int, communicator: Communicator) -> tuple[Any, ...]:
    """Positional arguments of a call, for the library's own collective and for ours."""
    size = communicator.size
    count = -(-max(nbytes // 4, 1) // size) * size  # to be cut evenly
    send = _values(count)
    if collective == "bcast":
        return (send,)
    if collective in ("allgather", "gather"):
        return send, np.empty(count * size, np.float32)
    if collective == "scatter":
        return np.resize(send, count * size), np.empty(count, np.float32)
    if collective == "reduce_scatter":
        return send, np.empty(count // size, np.float32)
    return send, np.empty(count, np.float32)
