"""Error-bounded codes that add without being decoded: every operand is on the same grid.

The payload is that of `collcomp.codecs.bounded`. A sum's is, too: integers add exactly, and the bound in front, from
which the decoder derives the grid, is divided where the sum is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.bounded import GridCodec, Room, Sections, check_bound
from collcomp.codecs.checks import check_flag
from collcomp.devices import counters, empty, like, on_device, read
from collcomp.frame import Frame
from collcomp.kernels import cpu, cuda
from collcomp.kernels.cpu import PACKED_LANES

__all__ = ["HBound"]


@dataclass(frozen=True)
class HBound(GridCodec):
    """`bounded` with an absolute bound and one grid for all, so that ranks add integers instead of floats.

    The error of every element is at most `abs`. A sum of n operands is the exact sum of their integers, sent without
    another rounding and the same whatever the order of adding: its error is at most ``n * abs``, that of an average
    `abs`. Sums of more than 2**15 operands (2**11 in float64) are formed decoded.

    Steps are 6% smaller than twice the bound, and blocks with a magnitude of more than 2**16 steps (2**20 in float64)
    travel as they are, as those with a NaN or an infinity do. Where there are such blocks in a segment, its operands
    are decoded and added, and the sum is rounded once more, still within ``n * abs`` (2 `abs` for an average).
    -0.0 becomes 0.0 in other blocks.

    Parameters
    ----------
    abs : float
        The bound, equal on all ranks.
    feedback : bool
        Carry what was rounded off into the next call with the same key; sums are formed decoded then.

    Examples
    --------
    >>> HBound(abs=1e-5).spec
    'hbound:abs=1e-05'

    Notes
    -----
    There is no `reduction`: plain sums would send the integers at 4 bytes an element, as many as the floats take.

    Source: Huang et al., "hZCCL: accelerating collective communication with co-designed homomorphic compression",
    SC 2024.
    """

    codec_id: ClassVar[str] = "hbound"
    number: ClassVar[int] = 25
    summary: ClassVar[str] = "integers on one grid, packed by width: sums are exact, error of every element <= a bound"
    # The slack is for two more roundings than `bounded` has: of integers of sums, and of divided steps.
    _rooms: ClassVar[dict[np.dtype, tuple[Room, Room]]] = {
        np.dtype(np.float32): (Room(16, 2.0**-4),) * 2,
        np.dtype(np.float64): (Room(20, 2.0**-4),) * 2,
    }

    abs: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "abs", check_bound("abs", self.abs))
        check_flag("feedback", self.feedback)

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """What the caller said."""
        return np.full_like(peak, self.abs)

    def _put_bound(self, src: np.ndarray, bound: np.ndarray) -> None:
        bound.fill(self.abs)

    def _encode_sum(
        self,
        frames: Sequence[Frame],
        own: np.ndarray,
        position: int,
        divisor: int,
        kept: np.ndarray | None,
        payload: np.ndarray,
        stream: int,
    ) -> tuple[int, int] | None:
        operands = [self._checked_sections(frame) for frame in frames]
        grid, divided = self._grid(self.abs, own.dtype), self._grid(self.abs / divisor, own.dtype)
        if (
            not own.size
            or not divided[0, 0]
            or (len(frames) + 1) << self._rooms[own.dtype][0].bits >= 2**31
            or any(frame.extra for frame in frames)
        ):
            return None
        section = self._sections(payload, own.size, own.dtype)
        if on_device(own):
            return self._sum_on_device(operands, own, divisor, kept, payload, section)
        if any(operand.bound[0] != self.abs for operand in operands):
            return None
        kernels = cpu.load("bounded")
        total = self._integers(own, grid)
        if total is None:
            return None
        room = np.empty(self.block, np.int32)
        for operand in operands:
            kernels.add_integers(total, operand.codes, operand.words, room)
        section.bound[0] = self.abs / divisor
        whole = np.empty(total.size, own.dtype) if kept is None or own.size % self.block else kept
        nbytes = 4 * kernels.encode_integers(total, whole, divided[0, 0], section.codes, section.words, room)
        if kept is not None and whole is not kept:
            kept[...] = whole[: own.size]
        return self._close(payload, own.size) + nbytes, 0

    def _sum_on_device(
        self,
        operands: Sequence[Sections],
        own: np.ndarray,
        divisor: int,
        kept: np.ndarray | None,
        payload: np.ndarray,
        section: Sections,
    ) -> tuple[int, int] | None:
        """It waits once, for the length and whether all operands were integers on the grid."""
        kernels, room = cuda.load("bounded"), self._room_on_device(own, own.size)
        total = empty(own.size, np.dtype(np.int32), own)
        kernels.quantise(own, like(self._grid(self.abs, own.dtype), own), total, counters())
        for operand in operands:
            kernels.add_integers(total, operand.codes, operand.words, operand.bound, self.abs, room, counters())
        section.bound.fill(self.abs / divisor)
        start = self._close(payload, own.size)
        divided = self._grid_on_device(section.bound, own.dtype)
        kept = empty(own.size, own.dtype, own) if kept is None else kept
        kernels.encode_integers(total, kept, divided, section.codes, section.words, room, counters())
        wrong, rows, *_ = read()
        return None if wrong else (start + 4 * PACKED_LANES * rows, 0)

    def _integers(self, src: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
        """The integers of `src`, filled up to whole blocks with its last one; None where a block has to go raw."""
        full = src.size // self.block * self.block
        total = np.empty(-(-src.size // self.block) * self.block, np.int32)
        quantise = cpu.load("bounded").quantise
        if not quantise(src[:full], grid, total[:full]):
            return None
        if full < src.size and not quantise(self._padded(src, full), grid, total[full:]):
            return None
        return total
