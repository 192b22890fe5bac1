"""Sparse frames: only the elements that matter most, with their positions."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import check_flag, check_integer
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cpu

__all__ = ["TopK"]

_DEFAULT_RATIO = 0.01


@dataclass(frozen=True)
class TopK(Codec):
    """The k elements of largest magnitude, exactly; the others become zero.

    NaN counts as larger than infinity, and among equals the first elements win. Every selected element arrives bit by
    bit; the error of the others is their magnitude, at most the smallest selected one.

    Parameters
    ----------
    ratio : float, optional
        Share of the elements that is selected, 0 < `ratio` <= 1, at least one element; 0.01 unless `k` is given.
    k : int, optional
        Number of elements that are selected (all, where a message is shorter).
    feedback : bool
        Carry what was not selected into the next call with the same key; without it, it is lost.

    Examples
    --------
    >>> TopK(ratio=0.001, feedback=True).spec
    'topk:ratio=0.001,feedback'
    """

    codec_id: ClassVar[str] = "topk"
    number: ClassVar[int] = 6
    summary: ClassVar[str] = "the elements of largest magnitude with their indices, the others become zero"
    sparse: ClassVar[bool] = True

    ratio: float | None = None
    k: int | None = None
    feedback: bool = False

    def __post_init__(self) -> None:
        check_flag("feedback", self.feedback)
        if self.k is not None:
            if self.ratio is not None:
                raise ValueError(f"ratio: {self.ratio!r} given beside k={self.k!r}, only one may be")
            check_integer("k", self.k, 1)
        elif self.ratio is None:
            # The default is written out, so that TopK() and TopK(ratio=0.01) are equal.
            object.__setattr__(self, "ratio", _DEFAULT_RATIO)
        elif isinstance(self.ratio, bool) or not isinstance(self.ratio, numbers.Real):
            raise TypeError(f"ratio: expected a number, got {self.ratio!r}")
        elif not 0 < self.ratio <= 1:
            raise ValueError(f"ratio: expected a number above 0 and at most 1, got {self.ratio!r}")

    def selected(self, count: int) -> int:
        """Number of elements that are selected of `count`."""
        if self.ratio is None:
            return min(self.k or 0, count)
        return min(max(1, math.ceil(self.ratio * count)), count)

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Exactly an index and a value for each selected element."""
        k = self.selected(count)
        return align(4 * k) + k * dtype.itemsize if k else 0

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._select(src, None, payload)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        outcome = self._select(residual, src, payload)
        if src.size:
            cpu.load("sparse").clear(self._sections(payload, src.size, src.dtype)[0], residual)
        return outcome

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        if dst.size:
            cpu.load("sparse").scatter(*self._checked_sections(frame), dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        if acc.size:
            cpu.load("sparse").scatter_add(*self._checked_sections(frame), acc)

    def _select(self, x: np.ndarray, addend: np.ndarray | None, payload: np.ndarray) -> tuple[int, int]:
        if x.size > 2**32:
            raise ValueError(f"count: {x.size} elements, indices of 32 bits reach 2**32")
        k = self.selected(x.size)
        if x.size:
            cpu.load("sparse").largest(x, addend, *self._sections(payload, x.size, x.dtype))
            payload[4 * k : align(4 * k)] = 0
        return self.max_payload_nbytes(x.size, x.dtype), k

    def _checked_sections(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        dtype, k = working_dtype(frame.dtype), self.selected(frame.count)
        expected = self.max_payload_nbytes(frame.count, dtype)
        if frame.extra != k or frame.payload.size != expected:
            raise FrameError(f"frame: {frame.extra} elements in {frame.payload.size} bytes, expected {k} in {expected}")
        indices, values = self._sections(frame.payload, frame.count, dtype)
        if not cpu.load("sparse").are_ascending(indices, frame.count):
            raise FrameError(f"frame: the indices do not ascend from 0 to {frame.count - 1}")
        return indices, values

    def _sections(self, payload: np.ndarray, count: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        k = self.selected(count)
        start = align(4 * k)
        return payload[: 4 * k].view(np.uint32), payload[start : start + k * dtype.itemsize].view(dtype)
