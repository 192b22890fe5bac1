"""Error-bounded codes: no element is further from what arrives than the caller allows.

The payload of a message:

- the bound, a float64, from which the decoder derives the grid;
- a byte for each block of 256 elements, that says how it is coded;
- zeros up to a multiple of 64 bytes;
- the blocks, one after another: packed integers (32 bytes for each bit of width), or 256 values as they are. The last
  block is filled up with its last element.

The header's `extra` is the number of blocks that travel as they are. No elements, no payload.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import as_number, check_flag
from collcomp.devices import counters, empty, like, on_device, read
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cpu, cuda, kernels_for
from collcomp.kernels.cpu import PACKED, PACKED_LANES

__all__ = ["Bounded", "GridCodec", "Room", "Sections", "check_bound"]

_BOUND_NBYTES = 8
_DEFAULT_REL = 1e-3


def check_bound(name: str, value: Any) -> float:
    """`value` as a float; `TypeError` unless it is a number, `ValueError` unless it is positive and finite."""
    bound = as_number(name, value)
    if not 0 < bound < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return bound


class Room(NamedTuple):
    """How far a grid reaches, and what that costs: steps are ``2 * bound / (1 + slack)``.

    Quantising and multiplying back are three roundings of the value, each by half a unit in its last place. Up to
    ``2**bits`` steps this is at most ``6 * 2**(bits - digits)`` of half a step, for a dtype of `digits` significant
    bits; `slack` is more than that.
    """

    bits: int
    slack: float


class Sections(NamedTuple):
    """Parts of a payload; the last two are views of the same memory."""

    bound: np.ndarray
    codes: np.ndarray
    words: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class GridCodec(Codec):
    """What codecs that round to a grid share; see the module for the payload."""

    on_devices: ClassVar[bool] = True
    block = PACKED
    #: The fine and the coarse grid for each dtype.
    _rooms: ClassVar[dict[np.dtype, tuple[Room, Room]]]

    feedback: bool = False

    @abstractmethod
    def _put_bound(self, src: np.ndarray, bound: np.ndarray) -> None:
        """Write the largest error that elements of `src` may have into `bound` (float64, of one element)."""

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The bound, the codes, and every block raw."""
        return self._blocks_offset(count) + self._blocks(count) * PACKED * dtype.itemsize

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._run("encode", (src,), payload)

    def _encode_keep(self, src: np.ndarray, kept: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._run("encode_keep", (src, kept), payload)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        return self._run("encode_feedback", (src, residual), payload)

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        self._unpack("decode", frame, dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        self._unpack("decode_add", frame, acc)

    def _grid(self, bound: float, dtype: np.dtype) -> np.ndarray:
        """Steps, inverses and limits of the fine and the coarse grid, as kernels take them."""
        info = np.finfo(dtype)
        grid = np.zeros((3, 2), dtype)
        for column, room in enumerate(self._rooms[dtype]):
            # Steps and inverses are normal numbers, and no multiple overflows: largest values go raw, too.
            step = min(2 * bound / (1 + room.slack), 2.0 ** (info.maxexp - 3))
            if step >= 2.0 ** (info.minexp + 2):
                grid[0, column] = step
                grid[1, column] = 1 / grid[0, column]
                grid[2, column] = min(float(grid[0, column]) * 2.0**room.bits, 2.0 ** (info.maxexp - 1))
        return grid

    def _grid_on_device(self, bound: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """`_grid`, of a bound that is known on the device only."""
        grid = empty(6, dtype, bound).reshape(3, 2)
        shares, reaches = zip(*((1 + room.slack, 2.0**room.bits) for room in self._rooms[dtype]), strict=True)
        cuda.load("bounded").fit(bound, shares, reaches, grid)
        return grid

    def _run(self, name: str, arrays: tuple[np.ndarray | None, ...], payload: np.ndarray) -> tuple[int, int]:
        """Encode with the kernel `name`, whose first arguments are `arrays`; the last is written where there are two.

        On a device it waits for the length.
        """
        first, last = arrays[0], arrays[-1]
        assert last is not None
        count = last.size
        if not count:
            return 0, 0
        section = self._sections(payload, count, last.dtype)
        self._put_bound(last if first is None else first, section.bound)
        start = self._close(payload, count)
        kernel = getattr(kernels_for(payload, "bounded"), name)
        if on_device(payload):
            grid, room = self._grid_on_device(section.bound, last.dtype), self._room_on_device(payload, count)
            kernel(*arrays, grid, section.codes, section.words, section.values, room, counters())
            found, rows, *_ = read()
            return start + 4 * PACKED_LANES * rows, found
        grid, integers = self._grid(float(section.bound[0]), last.dtype), np.empty((2, PACKED), np.int32)
        whole, rest = divmod(count, PACKED)
        full = count - rest
        position = before = found = 0
        if whole:
            position, before, found = kernel(
                *(None if array is None else array[:full] for array in arrays),
                grid, section.codes[:whole], section.words, section.values, 0, np.int32(0), *integers,
            )  # fmt: skip
        if rest:
            tails = [None if array is None else self._padded(array, full) for array in arrays]
            position, _, raw = kernel(
                *tails,
                grid, section.codes[whole:], section.words, section.values, position, np.int32(before), *integers,
            )  # fmt: skip
            found += raw
            if len(arrays) == 2:
                last[full:] = tails[1][:rest]  # type: ignore[index]
        return start + 4 * position, found

    def _unpack(self, name: str, frame: Frame, dst: np.ndarray) -> None:
        section = self._checked_sections(frame)
        if not dst.size:
            return
        kernel = getattr(kernels_for(dst, "bounded"), name)
        if on_device(dst):
            grid, room = self._grid_on_device(section.bound, dst.dtype), self._room_on_device(dst, dst.size)
            kernel(dst, grid, section.codes, section.words, section.values, room)
            return
        grid, room = self._grid(float(section.bound[0]), dst.dtype), np.empty(PACKED, np.int32)
        whole, rest = divmod(dst.size, PACKED)
        full = dst.size - rest
        position, before = kernel(
            dst[:full], grid, section.codes[:whole], section.words, section.values, 0, np.int32(0), room
        )
        if rest:
            tail = self._padded(dst, full)
            kernel(tail, grid, section.codes[whole:], section.words, section.values, position, np.int32(before), room)
            dst[full:] = tail[:rest]

    def _checked_sections(self, frame: Frame) -> Sections:
        """The sections of a frame; on a device the kernels check what the payload itself tells."""
        count, dtype = frame.count, working_dtype(frame.dtype)
        start = self._blocks_offset(count)
        if frame.payload.size < start:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {count} elements take at least {start}")
        section = self._sections(frame.payload, count, dtype)
        if on_device(frame.payload):
            return section
        nbytes, found = cpu.load("bounded").section_nbytes(section.codes, dtype.itemsize)
        if nbytes < 0:
            raise FrameError("frame: a block's width is more than 32 bits")
        if found != frame.extra:
            raise FrameError(f"frame: {found} blocks are marked as raw, the header tells of {frame.extra}")
        frame.check_nbytes(start + nbytes)
        if count and not 0 <= section.bound[0] < math.inf:
            raise FrameError(f"frame: {section.bound[0]} is no bound")
        return section

    def _close(self, payload: np.ndarray, count: int) -> int:
        """Fill the gap before the blocks; return where they begin."""
        start = self._blocks_offset(count)
        payload[_BOUND_NBYTES + self._blocks(count) : start] = 0
        return start

    def _sections(self, payload: np.ndarray, count: int, dtype: np.dtype) -> Sections:
        blocks, start = self._blocks(count), self._blocks_offset(count)
        section = payload[start : min(payload.size, self.max_payload_nbytes(count, dtype))]
        section = section[: section.size // dtype.itemsize * dtype.itemsize]
        return Sections(
            payload[: _BOUND_NBYTES if count else 0].view(np.float64),
            payload[_BOUND_NBYTES : _BOUND_NBYTES + blocks],
            section.view(np.uint32),
            section.view(dtype),
        )

    @staticmethod
    def _padded(array: np.ndarray, full: int) -> np.ndarray:
        """A copy of ``array[full:]``, filled up to a block with its last element."""
        copy = np.full(PACKED, array[-1])
        copy[: array.size - full] = array[full:]
        return copy

    def _room_on_device(self, beside: np.ndarray, count: int) -> np.ndarray:
        return empty(cuda.load("bounded").room_of(self._blocks(count)), np.dtype(np.int64), beside)

    def _blocks(self, count: int) -> int:
        return -(-count // PACKED)

    def _blocks_offset(self, count: int) -> int:
        return align(_BOUND_NBYTES + self._blocks(count)) if count else 0


@dataclass(frozen=True)
class Bounded(GridCodec):
    """Integer multiples of a step, packed by width: the error of every element is at most a bound.

    The bound holds for every finite float32 and float64, the rounding of all arithmetic included; steps are smaller
    than twice the bound for that (by 0.4% where elements are below 2**13 steps, by a third up to 2**20). Values of
    16-bit messages are rounded to their dtype besides. In blocks of 256 elements, differences of neighbours are coded
    instead where they take fewer bits (which is tried in one block of four, and in those after one where they did):
    smooth data shrink to 1 or 2 bits an element, others to about the logarithm of the largest magnitude in the block
    over the bound.

    Blocks that hold a NaN, an infinity, a magnitude of half the dtype's largest or more, or of more than 2**20 steps
    (2**29 in float64), travel as they are; so does everything where the bound is below the dtype's normal numbers,
    as that of a constant message with `rel` is. -0.0 becomes 0.0 in other blocks.

    Parameters
    ----------
    abs : float, optional
        The bound.
    rel : float, optional
        The bound as a share of the range (largest minus smallest finite value) of what is encoded at once, a segment
        of a message; 1e-3 unless `abs` is given.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> Bounded(abs=1e-4).spec
    'bounded:abs=0.0001'

    Notes
    -----
    Sources: Huang et al., "cuSZp: an ultra-fast GPU error-bounded lossy compression framework with optimized
    end-to-end performance", SC 2023; Huang et al., "hZCCL: accelerating collective communication with co-designed
    homomorphic compression", SC 2024.
    """

    codec_id: ClassVar[str] = "bounded"
    number: ClassVar[int] = 26
    summary: ClassVar[str] = "integers on a grid, packed by width, error of every element <= a bound"
    _rooms: ClassVar[dict[np.dtype, tuple[Room, Room]]] = {
        np.dtype(np.float32): (Room(13, 2.0**-8), Room(20, 0.5)),
        np.dtype(np.float64): (Room(29, 2.0**-8), Room(29, 2.0**-8)),
    }

    abs: float | None = None
    rel: float | None = None

    def __post_init__(self) -> None:
        check_flag("feedback", self.feedback)
        if self.abs is not None:
            if self.rel is not None:
                raise ValueError(f"rel: {self.rel!r} given beside abs={self.abs!r}, only one may be")
            object.__setattr__(self, "abs", check_bound("abs", self.abs))
        else:
            # The default is written out, so that Bounded() and Bounded(rel=1e-3) are equal.
            rel = _DEFAULT_REL if self.rel is None else self.rel
            object.__setattr__(self, "rel", check_bound("rel", rel))

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray | None:
        """What the caller said; of a bound relative to a range, magnitudes alone do not tell."""
        return None if self.abs is None else np.full_like(peak, self.abs)

    def _put_bound(self, src: np.ndarray, bound: np.ndarray) -> None:
        if self.abs is not None:
            bound.fill(self.abs)
            return
        assert self.rel is not None
        kernels, signed = kernels_for(src, "bounded"), np.dtype(f"i{src.itemsize}")
        limits = np.iinfo(signed)
        none = np.array([limits.max, limits.min], signed)
        if on_device(src):
            found = like(none, src)
            kernels.extremes(src, found)
            kernels.relative(found, self.rel, src.dtype.type, bound)
        else:
            bound.fill(min(self.rel * _range(kernels.extremes(src, none), src.dtype), sys.float_info.max))

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        if self.rel is None:
            return super()._encode_feedback(src, residual, payload, stream, state)
        np.add(residual, src, out=residual)  # the range is that of what is encoded
        return self._run("encode_feedback", (None, residual), payload)


def _range(extremes: tuple[int, int], dtype: np.dtype) -> float:
    """The largest minus the smallest finite value; 0 if there is none."""
    low, high = extremes
    if low > high:
        return 0.0
    signed = np.dtype(f"i{dtype.itemsize}")
    bits = [key if key >= 0 else key ^ np.iinfo(signed).max for key in (low, high)]
    least, greatest = np.array(bits, signed).view(dtype).tolist()
    return greatest - least
