"""Sparse vectors whose sketches add: sums without decoding, whatever the operands' non-zeros.

Source: Li et al., "Accelerating distributed deep learning using lossless homomorphic compression",
arXiv 2402.07529. That one adds floats, and so is lossless up to rounding in the sketch.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.codecs.checks import check_flag, check_integer, check_number
from collcomp.codecs.nonzeros import Nonzeros
from collcomp.errors import FrameError
from collcomp.frame import Frame
from collcomp.kernels import cpu

__all__ = ["LHC"]

_WORD = 64
#: Elements of the longest vector that is compressed: kernels have 32 bits for a place in the sketch and a sign.
_MOST = 2**31


class _Format(NamedTuple):
    """What sums of a float dtype are made of."""

    integers: np.dtype
    #: Bits behind the exponent.
    mantissa: int
    #: Exponents, the one of infinities and NaN last.
    exponents: int


_FORMATS = {
    np.dtype(np.float32): _Format(np.dtype(np.int32), 23, 2**8),
    np.dtype(np.float64): _Format(np.dtype(np.int64), 52, 2**11),
}


#: Frames hold the non-zeros of a single operand, without a sketch.
_FRAMES = Nonzeros()


@dataclass(frozen=True)
class LHC(Codec):
    """Non-zero elements only, whose sums are read from a sketch that adds without decoding.

    A frame holds the very values, as one of `nonzeros` does. A sum takes two rounds, for vectors that are mostly zero
    on all ranks together: the index of all non-zeros, by "or"; and a sketch, by "sum", whose counters hold sums of the
    values of several elements each and are fewer than the elements. Knowing the index, each rank reads all elements'
    sums from it.

    Sketches add integers, so that the sum is exact: every operand is rounded to a multiple of a power of two s, with
    30 bits (62 for float64) for n times the largest magnitude m: ``s <= n * m * 2**-28`` (``2**-60``). The error of a
    sum of n operands is at most ``n * s / 2`` besides the rounding of the result. There is none where all elements are
    multiples of s: integers or fixed-point values that fit into these bits. The result is the same for all `lanes` and
    `load`.

    Elements that cannot be read, a few in small sketches and many where `load` is below 1.23, are summed one by one in
    a third round. Where the sketch would not be smaller than the vector, an element is NaN or infinite, or there are
    more than 2**31 elements, the vector is summed plainly. Otherwise -0.0 becomes 0.0, as do elements up to s / 2.

    Parameters
    ----------
    lanes : int
        Neighbours that are placed in the sketch together, a power of two up to 65536. More are faster where non-zeros
        come in blocks, but the sketch is larger where some lanes (``position % lanes``) have more than others.
    load : float
        Counters of the sketch for each non-zero of the fullest lane, besides a few for small sketches. 0 makes no
        sketch: all elements of the index are summed one by one, which takes fewer bytes still.
    feedback : bool
        Carry what was rounded off in sums into the next call with the same key.

    Examples
    --------
    >>> LHC(load=1.5).spec
    'lhc:load=1.5'
    """

    codec_id: ClassVar[str] = "lhc"
    number: ClassVar[int] = 24
    summary: ClassVar[str] = "non-zeros only; sums in a sketch, exact for integers"
    summable: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    lanes: int = 16
    load: float = 1.3
    feedback: bool = False

    def __post_init__(self) -> None:
        check_integer("lanes", self.lanes, 1)
        if self.lanes & (self.lanes - 1) or self.lanes > 2**16:
            raise ValueError(f"lanes: expected a power of two up to 65536, got {self.lanes!r}")
        check_number("load", self.load, 0)
        check_flag("feedback", self.feedback)

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The elements as they are; an index with values is smaller."""
        return _FRAMES.max_payload_nbytes(count, dtype)

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """None in frames; half a step of the fixed-point numbers that sums are made of."""
        return np.zeros_like(peak) if size == 1 else peak * (size * 2.0**-29)

    def reduction(
        self,
        src: np.ndarray,
        dst: np.ndarray,
        size: int,
        *,
        shared: int,
        stream: int,
        residual: np.ndarray | None,
        state: dict[str, np.ndarray],
    ) -> Iterator[tuple[np.ndarray, str]]:
        """Reduce the index by "or", then the sketch by "sum"; a third round where something could not be read."""
        if not src.size:
            return
        kernels = cpu.load("lhc")
        x, addend = (src, None) if residual is None else (residual, src)
        form = _FORMATS[x.dtype]
        words, exponent = yield from _union(x, addend, form)
        positions = None if exponent == form.exponents - 1 else self._positions(words, x.size)
        rows = 0 if positions is None else self._rows(positions)
        if positions is None or rows * self.lanes >= x.size:
            dst[...] = x
            if residual is not None:
                residual[:] = 0
            yield dst, "sum"
            return
        # All elements are below 2 ** (exponent - bias), and so is their sum with one bit more for each doubling.
        bias = form.exponents // 2 - 2
        shift = 8 * form.integers.itemsize - 2 - (size - 1).bit_length() - (exponent - bias)
        step = _powers(-shift)
        values = np.empty(positions.size, form.integers)
        kernels.quantise(x, positions, _powers(shift), step, values, residual)
        totals = yield from self._totals(values, positions, rows)
        kernels.scatter(positions, totals, step, dst)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return _FRAMES._encode(src, payload, stream)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        residual += src
        outcome = self._encode(residual, payload, stream)
        residual[:] = 0  # a frame loses nothing
        return outcome

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        _FRAMES._decode(replace(frame, dtype=dst.dtype), dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        _FRAMES._decode_add(replace(frame, dtype=acc.dtype), acc)

    def _positions(self, words: np.ndarray, count: int) -> np.ndarray | None:
        """The positions of non-zeros; None where they are so many that the plain vector is smaller, or too long."""
        kernels = cpu.load("indices")
        nonzeros = kernels.ones(words)
        if count > _MOST or nonzeros * max(self.load, 1) >= count:
            return None
        positions = np.empty(nonzeros, np.uint32)
        kernels.from_bitmap(words, positions)
        return positions

    def _rows(self, positions: np.ndarray) -> int:
        """Rows of the sketch of these non-zeros."""
        if not self.load or not positions.size:
            return 0
        fullest = int(np.bincount(positions & np.uint32(self.lanes - 1)).max())
        # Small sketches need more. With this, few elements if any are left, however many there are.
        return math.ceil(self.load * fullest + math.sqrt(fullest))

    def _totals(
        self, values: np.ndarray, positions: np.ndarray, rows: int
    ) -> Generator[tuple[np.ndarray, str], None, np.ndarray]:
        """The sums of `values` over all ranks: those that can be read from a sketch, then the others."""
        totals, found = np.empty_like(values), np.zeros(values.size, np.bool_)
        if rows:
            kernels = cpu.load("lhc")
            cells = np.empty((values.size, 3), np.uint32)
            kernels.place(positions, self.lanes.bit_length() - 1, rows, cells)
            counters = np.empty(rows * self.lanes, values.dtype)
            kernels.sketch(values, cells, counters)
            yield counters, "sum"
            links, queue = np.empty((counters.size, 2), np.uint32), np.empty(counters.size + 1, np.uint32)
            kernels.peel(cells, counters, links, queue, totals, found)
        (left,) = np.nonzero(~found)
        if left.size:
            leftovers = values[left]
            yield leftovers, "sum"
            totals[left] = leftovers
        return totals


def _union(
    x: np.ndarray, addend: np.ndarray | None, form: _Format
) -> Generator[tuple[np.ndarray, str], None, tuple[np.ndarray, int]]:
    """The index of all ranks' non-zeros, and the largest of their exponents, in one round.

    `x` becomes ``x + addend``. Before the index there is a bit for each exponent, of which each rank sets its own.
    """
    index = np.zeros(form.exponents // _WORD + _words(x.size), np.uint64)
    exponents, words = np.split(index, [form.exponents // _WORD])
    exponent = int(cpu.load("lhc").find_nonzeros(x, addend, words)) >> form.mantissa
    exponents[exponent // _WORD] = 1 << exponent % _WORD
    yield index, "or"
    if x.size % _WORD and int(words[-1]) >> x.size % _WORD:
        raise FrameError(f"frame: the index has bits beyond its {x.size} elements")
    return words, int.from_bytes(exponents.tobytes(), "little").bit_length() - 1


def _words(count: int) -> int:
    return -(-count // _WORD)


def _powers(exponent: int) -> tuple[float, float]:
    """Two powers of two whose product, which may be out of range, is ``2**exponent``."""
    return math.ldexp(1, exponent // 2), math.ldexp(1, exponent - exponent // 2)
