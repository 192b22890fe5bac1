"""Error-bounded codes of tables whose rows repeat, as embeddings of popular items in a batch do.

The payload of n rows (a last, incomplete one does not count):

- for each row, a uint16: 0 for a row that is kept, else how many kept rows back from here its equal stands; zeros up to
  a multiple of 64 bytes;
- the kept rows and the incomplete one, as the payload of `collcomp.codecs.bounded`.

The header's `extra` is the number of kept rows, plus 2**32 times the number of blocks that travel as they are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.codecs.bounded import check_bound
from collcomp.codecs.checks import check_flag, check_integer
from collcomp.codecs.hbound import HBound
from collcomp.codecs.streams import hashes
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cpu

__all__ = ["Rows"]

_MAX_TABLE_BITS = 17


@dataclass(frozen=True)
class Rows(Codec):
    """`bounded` with an absolute bound, and rows that repeat an earlier one become references of two bytes.

    Rows are equal where all their elements fall on the same multiples of the step: what is nearly the same repeats as
    well, and the error of every element still is at most `abs`. An earlier row is found by a hash of it among the last
    65535 different ones, most of the time.

    Rows with a NaN, an infinity or a magnitude of more than 2**16 steps (2**20 in float64) travel as they are, and so
    do those that share a block of 256 elements with them (but on the grid); they are referred to where they repeat bit
    by bit. -0.0 becomes 0.0 in other rows.

    Parameters
    ----------
    dim : int
        Elements of a row. Messages begin with a row, and segments do.
    abs : float
        The bound.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> Rows(dim=128, abs=0.02).spec
    'rows:dim=128,abs=0.02'

    Notes
    -----
    Source: Feng et al., "Accelerating communication in deep learning recommendation model training with dual-level
    adaptive lossy compression", SC 2024.
    """

    codec_id: ClassVar[str] = "rows"
    number: ClassVar[int] = 27
    summary: ClassVar[str] = "rows that repeat become references, the others integers on a grid, error <= a bound"

    dim: int = 64
    abs: float = 0.01
    feedback: bool = False

    def __post_init__(self) -> None:
        check_integer("dim", self.dim, 1)
        object.__setattr__(self, "abs", check_bound("abs", self.abs))
        check_flag("feedback", self.feedback)
        object.__setattr__(self, "block", self.dim)

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """What the caller said."""
        return np.full_like(peak, self.abs)

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """All references, and all rows as they are."""
        return self._start(count) + self._inner.max_payload_nbytes(count, dtype)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        kernels = cpu.load("rows")
        inner, start, rows = self._inner, self._start(src.size), src.size // self.dim
        # What arrives of the rows: equal in every bit where the integers are equal.
        values = np.empty_like(src)
        kernels.snap(src, inner._grid(self.abs, src.dtype), self.dim, values)
        bits = min((2 * rows).bit_length(), _MAX_TABLE_BITS)
        factors = _factors(self.dim * src.itemsize // 4)
        table, references = np.full(1 << bits, -1, np.int32), payload[: 2 * rows].view(np.uint16)
        kept = kernels.keep(values.view(np.uint32), factors, table, references) if rows else 0
        payload[2 * rows : start] = 0
        rest = src.size - rows * self.dim
        count = kept * self.dim + rest
        values[count - rest : count] = values[src.size - rest :]
        nbytes, raw = inner._encode(values[:count], payload[start:], stream)
        return start + nbytes, kept + (raw << 32)

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        start, rows = self._start(dst.size), dst.size // self.dim
        if frame.payload.size < start:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {rows} references take {start}")
        references = frame.payload[: 2 * rows].view(np.uint16)
        kernels = cpu.load("rows")
        kept = kernels.count_kept(references)
        if kept < 0:
            raise FrameError("frame: a reference reaches back behind the first row")
        raw, told = divmod(frame.extra, 1 << 32)
        if kept != told:
            raise FrameError(f"frame: {kept} rows are kept, the header tells of {told}")
        rest = dst.size - rows * self.dim
        count = kept * self.dim + rest
        self._inner._decode(replace(frame, count=count, extra=raw, payload=frame.payload[start:]), dst[:count])
        dst[dst.size - rest :] = dst[count - rest : count]
        kernels.spread(dst[: dst.size - rest], self.dim, kept, references)

    @functools.cached_property
    def _inner(self) -> HBound:
        """Codes the rows that are kept; on one grid, so that a row arrives alike wherever it stands."""
        return HBound(abs=self.abs)

    def _start(self, count: int) -> int:
        return align(2 * (count // self.dim))


@functools.lru_cache
def _factors(width: int) -> np.ndarray:
    """Odd numbers that have nothing to do with each other."""
    return hashes(width) | np.uint64(1)
