"""Compress only where that is predicted to pay: the cheapest way within what the user tolerates."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from collcomp.codecs import BF16, FP8E4M3, Codec, Exponents, Identity, Int2, Int4, Int8, as_codec
from collcomp.collectives import ALGORITHMS, HIERARCHICAL, NATIVE, RING, Plan
from collcomp.planner.cost import NATIVE_CODEC, CostModel
from collcomp.policies.base import Call, plan_for, unsuited

__all__ = ["Auto", "Choice", "is_auto"]

# What may be chosen where an error is tolerated; a codec that is slower and larger than another at once is not here.
_BOUNDED = (BF16(), FP8E4M3(), Int8(), Int4(), Int2())
_LOSSLESS = (Identity(), Exponents())
# Predictions are this far from the truth, most of the time: what seems to gain less stays native.
_MARGIN = 1.03
# Between sizes that are looked at for the smallest one that is worth anything.
_STEP = 2**0.25
_SMALLEST, _LARGEST = 8, 1 << 30
#: Frames are shortest, for their messages, where elements are longest, and the other way round.
_DTYPES = tuple(map(np.dtype, (np.float16, np.float32, np.float64)))


def is_auto(codec: object) -> bool:
    """Whether `codec` is a spec of an `Auto`, and not of a codec."""
    return isinstance(codec, str) and re.match(r"auto\b", codec.strip()) is not None


@dataclass(frozen=True, slots=True)
class Choice:
    """One way of doing a collective, and its predicted time.

    Attributes
    ----------
    plan : Plan
    seconds : float
    """

    plan: Plan
    seconds: float

    @property
    def codec(self) -> str:
        """The codec as tables name it."""
        return NATIVE_CODEC if self.plan.algorithm == NATIVE else self.plan.codec.spec


class Auto:
    """Plan each call by the time that a `CostModel` predicts.

    Every rank has the same model, so all ranks plan alike. Without a model everything stays native.

    Parameters
    ----------
    codecs : sequence of str or Codec
        What may be used; `Identity` is always among them, because an algorithm may be worth changing by itself.
    model : CostModel, optional
        What is known of this communicator; `collcomp.calibration.calibrate` measures it.
    bounded : bool
        No lossy codec by an algorithm that rounds more than twice: a ring rounds at every hop.

    Attributes
    ----------
    codecs : tuple of Codec
    model : CostModel or None

    Raises
    ------
    ValueError
        If a codec remembers more than a residual: how long its calls take cannot be measured beforehand.
    """

    def __init__(
        self, codecs: Sequence[str | Codec] = (), model: CostModel | None = None, *, bounded: bool = False
    ) -> None:
        chosen = [as_codec(codec) for codec in codecs]
        for codec in chosen:
            if codec.stateful:
                raise ValueError(f"codecs: {codec.spec!r} remembers what it sent; name it in the calls that it is for")
        self.codecs: tuple[Codec, ...] = tuple(dict.fromkeys([Identity(), *chosen]))
        self.model = model
        self.bounded = bounded
        self._below: dict[str, int] = {}
        self._known: set[str] = set()
        self._plan = lru_cache(4096)(self._planned)

    @classmethod
    def from_spec(cls, spec: str) -> Auto:
        """The policy that a codec's place names.

        Parameters
        ----------
        spec : str
            ``"auto"``: lossless only. ``"auto:error=0.01"``: any codec whose error, each time that it encodes, is at
            most so many times the largest magnitude of an element's block (an allreduce encodes twice at most).
            ``"auto:int8|topk:ratio=0.01"``: these codecs.

        Raises
        ------
        ValueError
            If it is none of these.

        Examples
        --------
        >>> [codec.spec for codec in Auto.from_spec("auto:error=0.01").codecs]
        ['identity', 'bf16', 'int8']
        """
        name, colon, rest = spec.partition(":")
        if name.strip() != "auto" or (colon and not rest):
            raise ValueError(f"codec: {spec!r} is no 'auto', 'auto:error=0.01' or 'auto:int8|int4'")
        if not rest:
            return cls(_LOSSLESS)
        key, equals, value = rest.partition("=")
        if key.strip() == "error" and equals:
            return cls(_within(value, spec), bounded=True)
        return cls([part.strip() for part in rest.split("|")])

    def plan(self, call: Call) -> Plan:
        """The plan of `call`."""
        return self._plan(call)

    def for_ranks(self, size: int) -> Auto:
        """The same policy for another communicator, with what is known if that is of `size` ranks."""
        model = self.model if self.model is not None and self.model.size == size else None
        return Auto(self.codecs, model, bounded=self.bounded)

    def knows(self, collective: str) -> bool:
        """Whether every way of doing this collective was measured."""
        if collective in self._known:
            return True
        model = self.model
        if model is None:
            return False
        ways = [(NATIVE, NATIVE_CODEC), *self.ways(collective, model)]
        if not all((collective, *way) in model.fits for way in ways):
            return False
        self._known.add(collective)
        return True

    def learn(self, model: CostModel) -> None:
        """Go by `model` from now on, on all ranks from the same call on."""
        self.model = model
        self._below.clear()
        self._known.clear()
        self._plan.cache_clear()

    def ways(self, collective: str, model: CostModel) -> list[tuple[str, str]]:
        """Algorithms and codec specs to choose from on the ranks of `model`, besides the native call."""
        return [(plan.algorithm, plan.codec.spec) for plan in self._plans(collective, model)]

    def choices(self, call: Call) -> list[Choice]:
        """All ways of doing `call`, the one with the shortest predicted time first; none without a model."""
        model = self.model
        if model is None:
            return []
        itemsize = call.dtype.itemsize
        plans = [
            plan
            for plan in self._plans(call.collective, model)
            if model.predicts(call.collective, plan.algorithm, plan.codec.spec)
            and unsuited(call, plan.codec) is None
            and _useful(plan.codec, call.dtype)
        ]
        choices = [
            Choice(plan, model.seconds(call.collective, plan.algorithm, plan.codec.spec, call.nbytes, itemsize))
            for plan in plans
        ]
        native = model.seconds(call.collective, NATIVE, NATIVE_CODEC, call.nbytes, itemsize)
        choices.append(Choice(Plan(NATIVE, Identity()), native))
        return sorted(choices, key=lambda choice: choice.seconds)

    def native_below(self, collective: str) -> int:
        """Messages of fewer bytes are native, whatever their dtype and operation."""
        if collective not in self._below:
            self._below[collective] = self._native_below(collective)
        return self._below[collective]

    def _native_below(self, collective: str) -> int:
        model = self.model
        if model is None or not model.covers(collective):
            return 0
        sizes = {int(_SMALLEST * _STEP**k) for k in range(int(math.log(_LARGEST / _SMALLEST, _STEP)) + 1)}
        sizes |= {nbytes for kind, fit in model.fits.items() if kind[0] == collective for nbytes in fit.nbytes}
        below = 0
        for nbytes in sorted(sizes):
            for dtype in _DTYPES:
                call = Call(collective, nbytes, dtype, "sum", model.size, key="any")
                if self._cheapest(call).algorithm != NATIVE:
                    return below
            below = nbytes + 1
        return _LARGEST

    def _plans(self, collective: str, model: CostModel) -> list[Plan]:
        call = Call(collective, 0, np.dtype(np.float32), None, 1)
        plans = []
        for codec in self.codecs:
            plans.append(plan_for(call, codec))
            if codec.sparse or codec.summable or collective not in ALGORITHMS[RING]:
                continue
            if (model.groups > 1 or RING in model.wires) and (codec.lossless or not self.bounded):
                plans.append(Plan(RING, codec))
            if model.groups > 1:
                plans.append(Plan(HIERARCHICAL, codec))
        return plans

    def _planned(self, call: Call) -> Plan:
        if call.size == 1:
            return _native("auto: one rank sends nothing")
        if not call.uniform:
            return _native("ranks do not know each other's sizes; name a codec in the call")
        if self.model is None or not self.model.covers(call.collective):
            return _native(f"auto: what {call.collective} costs here was not measured yet")
        below = self.native_below(call.collective)
        if call.nbytes < below:
            return _native(f"auto: fewer than {below} bytes")  # as faces say that do not ask for a plan
        return self._cheapest(call)

    def _cheapest(self, call: Call) -> Plan:
        choices = self.choices(call)
        native = next(choice for choice in choices if choice.plan.algorithm == NATIVE)
        best = choices[0]
        if best.seconds * _MARGIN > native.seconds:
            return _native(f"auto: {native.seconds:.2e} s, best other way {_other(choices)}")
        return replace(best.plan, reason=f"auto: {best.seconds:.2e} s, native {native.seconds:.2e} s")


def _native(reason: str) -> Plan:
    return Plan(NATIVE, Identity(), reason=reason)


def _other(choices: Sequence[Choice]) -> str:
    best = next((choice for choice in choices if choice.plan.algorithm != NATIVE), None)
    return "none" if best is None else f"{best.seconds:.2e} s ({best.plan.algorithm}, {best.codec})"


def _useful(codec: Codec, dtype: np.dtype) -> bool:
    """Whether the model's costs, which are of floats, are those of `dtype` too."""
    return codec.verbatim or dtype.kind == "f" or dtype.name == "bfloat16"


def _within(text: str, spec: str) -> list[Codec]:
    try:
        error = float(text)
    except ValueError:
        error = -1.0
    if not 0 <= error < 1:
        raise ValueError(f"codec: {spec!r} tolerates no error between 0 and 1")
    peak = np.ones(1)
    bounds = [(codec, codec.error_bound(peak)) for codec in (*_LOSSLESS, *_BOUNDED)]
    return [codec for codec, bound in bounds if bound is not None and float(bound[0]) <= error]
