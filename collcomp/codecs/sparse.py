"""Sparse frames: only the elements that matter most, with their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs import selection
from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import check_flag, check_integer, check_ratio
from collcomp.devices import empty
from collcomp.frame import Frame
from collcomp.kernels import kernels_for

__all__ = ["FixedShare", "SparseCodec", "TopK"]

_DEFAULT_RATIO = 0.01


class SparseCodec(Codec):
    """A codec whose frames hold a selection of the elements: decoding follows from `selection`."""

    sparse: ClassVar[bool] = True

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        kernels_for(dst, "sparse").scatter(*self.selection(frame), dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        kernels_for(acc, "sparse").scatter_add(*self.selection(frame), acc)


@dataclass(frozen=True)
class FixedShare(SparseCodec):
    """A sparse codec that selects a number of elements that depends on their count only."""

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
        else:
            check_ratio("ratio", self.ratio)

    def selected(self, count: int) -> int:
        """Number of elements that are selected of `count`."""
        if self.ratio is None:
            return min(self.k or 0, count)
        return selection.share(self.ratio, count)


@dataclass(frozen=True)
class TopK(FixedShare):
    """The k elements of largest magnitude, exactly; the others become zero.

    NaN counts as larger than infinity, and among equals the first elements win. Every selected element arrives bit by
    bit; the error of the others is their magnitude, at most the smallest selected one. Indices travel as gaps packed
    by width, 10 bits each at 1% of evenly spread elements, or as a bitmap, whichever is smaller.

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
    on_devices: ClassVar[bool] = True

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Values, and indices of any layout."""
        return selection.max_nbytes(self.selected(count), dtype)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return selection.finish(payload, self._select(src, None, payload), src.itemsize, src.size)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        indices = self._select(residual, src, payload)
        kernels_for(residual, "sparse").clear(indices, residual)
        return selection.finish(payload, indices, src.itemsize, src.size)

    def _select(self, x: np.ndarray, addend: np.ndarray | None, payload: np.ndarray) -> np.ndarray:
        selection.check_count(x.size)
        k = self.selected(x.size)
        if not k:
            return empty(0, np.dtype(np.uint32), x)
        return selection.largest(x, addend, k, selection.values_in(payload, k, x.dtype))

    def selection(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        k = self.selected(frame.count)
        return selection.read(frame, working_dtype(frame.dtype), k, k)
