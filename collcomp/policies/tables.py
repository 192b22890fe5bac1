"""An error bound for each embedding table, larger early in training.

Source: Feng et al., "Accelerating communication in deep learning recommendation model training with dual-level adaptive
lossy compression", SC 2024. The thresholds between classes are this library's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from collcomp.codecs import Codec, Identity, Rows, as_codec
from collcomp.collectives import NATIVE, Plan
from collcomp.policies.base import Call, plan_for, unsuited
from collcomp.policies.fixed import DEFAULT_MIN_NBYTES

__all__ = ["Decay", "TableBounds", "bound_class", "homogenization_index"]

_KINDS = ("stepwise", "linear", "logarithmic")


def homogenization_index(rows: np.ndarray, bound: float) -> float:
    """How many rows can no longer be told apart once they are quantised, as a share of the different ones.

    Parameters
    ----------
    rows : ndarray, shape (n, dim)
        A sample of a table's embeddings.
    bound : float
        The absolute error bound that they would be coded with.

    Returns
    -------
    float
        0 where all rows that differ still do, towards 1 where they all become the same.
    """
    if not len(rows):
        return 0.0
    wide = np.asarray(rows, np.float64)
    return 1 - len(np.unique(np.rint(wide / (2 * bound)), axis=0)) / len(np.unique(wide, axis=0))


def bound_class(index: float, medium: float = 0.01, small: float = 0.1) -> str:
    """``"large"``, ``"medium"`` or ``"small"``: the more rows a bound makes alike, the smaller it has to be.

    Parameters
    ----------
    index : float
        The table's `homogenization_index`.
    medium, small : float
        From which index on bounds are medium, and small.
    """
    if index >= small:
        return "small"
    return "medium" if index >= medium else "large"


@dataclass(frozen=True)
class Decay:
    """By how much bounds are larger than their final ones, from `start` down to 1.

    Early in training errors do less harm, so bounds may begin larger.

    Parameters
    ----------
    kind : {"stepwise", "linear", "logarithmic"}
        In `stages` equal drops; evenly; or fast at first and ever more slowly.
    start : float
        Factor of the first step, at least 1.
    steps : int
        Steps after which the factor is 1.
    stages : int
        Number of drops of the stepwise decay.
    """

    kind: str = "linear"
    start: float = 2.0
    steps: int = 1000
    stages: int = 4

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind: expected one of {', '.join(map(repr, _KINDS))}, got {self.kind!r}")
        if not 1 <= self.start < math.inf:
            raise ValueError(f"start: expected a finite number of at least 1, got {self.start!r}")
        for name, value in (("steps", self.steps), ("stages", self.stages)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value!r}")

    def factor(self, step: int) -> float:
        """The factor of step number `step`; it never grows."""
        done = min(step / self.steps, 1.0)
        if self.kind == "stepwise":
            done = math.floor(done * self.stages) / self.stages
        elif self.kind == "logarithmic":
            done = min(math.log1p(step) / math.log1p(self.steps), 1.0)
        return self.start + (1 - self.start) * done


class TableBounds:
    """Give each embedding table a codec with a bound of its own; every other call goes to the native library.

    A table is what calls name by ``key=``: all ranks have to name the same in a call, as in any. Plans depend on the
    key and the number of `step` calls only, so sizes may differ between ranks.

    Parameters
    ----------
    tables : mapping of str to str or Codec
        Each table's codec, with the absolute bound that it has at the end of the decay.
    decay : Decay, optional
        None: bounds stay what they are.
    min_nbytes : int
        Smaller messages go to the native library, where all ranks know that they are smaller.

    Attributes
    ----------
    iteration : int
        How often `step` was called; set it where training resumes.

    Examples
    --------
    >>> policy = TableBounds({"users": "rows:dim=64,abs=0.01", "items": "rows:dim=32,abs=0.002"}, Decay("stepwise"))
    """

    def __init__(
        self,
        tables: Mapping[str, str | Codec],
        decay: Decay | None = None,
        min_nbytes: int = DEFAULT_MIN_NBYTES,
    ) -> None:
        self.tables = {key: as_codec(codec) for key, codec in tables.items()}
        for key, codec in self.tables.items():
            if getattr(codec, "abs", None) is None:
                raise ValueError(f"tables: {codec.spec!r} of {key!r} has no absolute bound")
        self.decay = decay
        self.min_nbytes = min_nbytes
        self.iteration = 0

    @classmethod
    def from_samples(
        cls,
        samples: Mapping[str, np.ndarray],
        *,
        large: float,
        medium: float,
        small: float,
        **options: Any,
    ) -> TableBounds:
        """Choose each table's bound by how alike the large one would make its rows.

        Parameters
        ----------
        samples : mapping of str to ndarray, shape (n, dim)
            Some embeddings of each table, the same on every rank.
        large, medium, small : float
            The bound of each class.
        **options
            As for the class.
        """
        bounds = {"large": large, "medium": medium, "small": small}
        tables = {
            key: Rows(dim=rows.shape[1], abs=bounds[bound_class(homogenization_index(rows, large))])
            for key, rows in samples.items()
        }
        return cls(tables, **options)

    def step(self) -> None:
        """Go on to the next iteration, on every rank alike."""
        self.iteration += 1

    def plan(self, call: Call) -> Plan:
        """The plan of `call` at this iteration."""
        codec = None if call.key is None else self.tables.get(call.key)
        if codec is None:
            reason = f"key: {call.key!r} is no table with a bound"
        elif call.uniform and call.nbytes < self.min_nbytes:
            reason = f"{call.nbytes} bytes are fewer than min_nbytes={self.min_nbytes}"
        else:
            reason = unsuited(call, codec) or ""
        if codec is None or reason:
            return Plan(NATIVE, Identity(), reason=reason)
        if self.decay is not None:
            codec = _scaled(codec, self.decay.factor(self.iteration))
        return plan_for(call, codec)


def _scaled(codec: Any, factor: float) -> Codec:
    return replace(codec, abs=codec.abs * factor)
