"""Compress only where that is predicted to pay: the cheapest way within what the user tolerates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
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


def is_auto(codec: object) -> bool:
    """Whether `codec` is a spec of an `Auto`, and not of a codec."""
    return isinstance(codec, str) and re.match(r"auto\b", codec.strip()) is not None


class Choice:
    """One way of doing a collective, and its predicted time.

    Attributes
    ----------
    plan : Plan
    seconds : float
    """

    __slots__ = ("plan", "seconds")

    def __init__(self, plan: Plan, seconds: float) -> None:
        self.plan = plan
        self.seconds = seconds

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

    Attributes
    ----------
    codecs : tuple of Codec
    model : CostModel or None

    Raises
    ------
    ValueError
        If a codec remembers more than a residual: how long its calls take cannot be measured beforehand.
    """

    def __init__(self, codecs: Sequence[str | Codec] = (), model: CostModel | None = None) -> None:
        chosen = [as_codec(codec) for codec in codecs]
        for codec in chosen:
            if codec.stateful:
                raise ValueError(f"codecs: {codec.spec!r} remembers what it sent; name it in the calls that it is for")
        self.codecs: tuple[Codec, ...] = tuple(dict.fromkeys([Identity(), *chosen]))
        self.model = model
        self._plan = lru_cache(4096)(self._cheapest)

    @classmethod
    def from_spec(cls, spec: str) -> Auto:
        """The policy that a codec's place names.

        Parameters
        ----------
        spec : str
            ``"auto"``: lossless only. ``"auto:error=0.01"``: any codec whose error is at most so many times the largest
            magnitude of an element's block. ``"auto:int8|topk:ratio=0.01"``: these codecs.

        Raises
        ------
        ValueError
            If it is none of these.

        Examples
        --------
        >>> [codec.spec for codec in Auto.from_spec("auto:error=0.01").codecs]
        ['identity', 'bf16', 'int8']
        """
        name, colon, rest = spec.strip().partition(":")
        if name != "auto" or (colon and not rest):
            raise ValueError(f"codec: {spec!r} is no 'auto', 'auto:error=0.01' or 'auto:int8|int4'")
        if not rest:
            return cls(_LOSSLESS)
        key, equals, value = rest.partition("=")
        if key.strip() == "error" and equals:
            return cls(_within(value, spec))
        return cls([part.strip() for part in rest.split("|")])

    def plan(self, call: Call) -> Plan:
        """The plan of `call`."""
        return self._plan(call)

    def knows(self, collective: str) -> bool:
        """Whether there are predictions for this collective with every codec."""
        model = self.model
        return model is not None and all(
            (collective, algorithm, codec) in model.fits
            for algorithm, codec in [(NATIVE, NATIVE_CODEC), *self.ways(collective, model.groups)]
        )

    def learn(self, model: CostModel) -> None:
        """Go by `model` from now on, on all ranks from the same call on."""
        self.model = model
        self._plan.cache_clear()

    def ways(self, collective: str, groups: int = 1) -> list[tuple[str, str]]:
        """Algorithms and codec specs to choose from, besides the native call."""
        return [(plan.algorithm, plan.codec.spec) for plan in self._plans(collective, groups)]

    def choices(self, call: Call) -> list[Choice]:
        """All ways of doing `call`, the one with the shortest predicted time first; none without a model."""
        model = self.model
        if model is None:
            return []
        itemsize = call.dtype.itemsize
        plans = [
            plan
            for plan in self._plans(call.collective, model.groups)
            if model.predicts(plan.algorithm) and unsuited(call, plan.codec) is None and _useful(plan.codec, call.dtype)
        ]
        choices = [
            Choice(plan, model.seconds(call.collective, plan.algorithm, plan.codec.spec, call.nbytes, itemsize))
            for plan in plans
        ]
        native = model.seconds(call.collective, NATIVE, NATIVE_CODEC, call.nbytes, itemsize)
        choices.append(Choice(Plan(NATIVE, Identity()), native))
        return sorted(choices, key=lambda choice: choice.seconds)

    def native_below(self, collective: str) -> int:
        """Messages of fewer bytes are native, whatever their dtype."""
        if self.model is None:
            return 0
        nbytes = _SMALLEST
        while nbytes < _LARGEST:
            for dtype in (np.float16, np.float32, np.float64):
                call = Call(collective, nbytes, np.dtype(dtype), "sum", self.model.size, key="any")
                if self._cheapest(call).algorithm != NATIVE:
                    return int(nbytes / _STEP)
            nbytes = max(nbytes + 8, int(nbytes * _STEP) // 8 * 8)
        return _LARGEST

    def _plans(self, collective: str, groups: int) -> list[Plan]:
        call = Call(collective, 0, np.dtype(np.float32), None, 1)
        plans = []
        for codec in self.codecs:
            plans.append(plan_for(call, codec))
            if groups > 1 and not codec.sparse and not codec.summable:
                plans += [Plan(name, codec) for name in (RING, HIERARCHICAL) if collective in ALGORITHMS[name]]
        return plans

    def _cheapest(self, call: Call) -> Plan:
        if call.size == 1:
            return _native("auto: one rank sends nothing")
        if not call.uniform:
            return _native("ranks do not know each other's sizes; name a codec in the call")
        choices = self.choices(call)
        if not choices:
            return _native("auto: nothing is known of this communicator; collcomp.calibration.calibrate measures it")
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
