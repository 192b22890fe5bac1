"""Block quantisation: small integers with one scale a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import check_choice, check_flag, check_integer
from collcomp.codecs.streams import random_key
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cpu

__all__ = ["Int4", "Int8"]


class _Sections(NamedTuple):
    scales: np.ndarray
    codes: np.ndarray
    raw: np.ndarray


@dataclass(frozen=True)
class _BlockQuantiser(Codec):
    """The payload: scales (float32), codes, raw blocks; each section starts at a multiple of 64 bytes.

    The last block is as long as what is left, filled up with zeros to a multiple of `_granule`.
    """

    #: Module of the kernels, to which the dtypes of scales and codes tell the format.
    _kernels: ClassVar[str] = "quantised"
    _scale_dtype: ClassVar[np.dtype] = np.dtype(np.float32)
    _code_dtype: ClassVar[np.dtype]
    _codes_per_byte: ClassVar[int]
    _granule: ClassVar[int] = 2
    #: Elements that `_encode_sum` sums before it encodes them, where blocks are shorter.
    _group: ClassVar[int] = 0

    block: int = 256
    rounding: str = "nearest"
    seed: int = 0
    feedback: bool = False

    def __post_init__(self) -> None:
        check_integer("block", self.block, 16, multiple=self._granule)
        check_choice("rounding", self.rounding, ("nearest", "stochastic"))
        check_integer("seed", self.seed, 0)
        check_flag("feedback", self.feedback)

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Scales, codes, and every block raw."""
        return self._raw_offset(count) + self._filled(count) * dtype.itemsize

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._run(cpu.load(self._kernels).encode, (src,), payload, stream)

    def _encode_keep(self, src: np.ndarray, kept: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._run(cpu.load(self._kernels).encode_keep, (src, kept), payload, stream)

    def _encode_sum(
        self,
        frames: Sequence[Frame],
        own: np.ndarray,
        position: int,
        divisor: int,
        kept: np.ndarray,
        payload: np.ndarray,
        stream: int,
    ) -> tuple[int, int] | None:
        if any(frame.extra for frame in frames):
            return None
        others = [self._checked_sections(frame) for frame in frames]
        total = np.empty(max(self.block, self._group), own.dtype)

        def encode_sum(src: np.ndarray, dst: np.ndarray, scales: np.ndarray, codes: np.ndarray, *rest: Any) -> int:
            first = rest[-1]
            start = first * self.block // self._codes_per_byte
            return cpu.load(self._kernels).encode_sum(
                tuple(sections.scales[first : first + scales.size] for sections in others),
                tuple(sections.codes[start : start + codes.size] for sections in others),
                src,
                position,
                src.dtype.type(divisor),
                total[: min(total.size, src.size)],
                dst,
                scales,
                codes,
                *rest,
            )

        return self._run(encode_sum, (own, kept), payload, stream)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        return self._run(cpu.load(self._kernels).encode_feedback, (src, residual), payload, stream)

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        self._unpack(cpu.load(self._kernels).decode, frame, dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        self._unpack(cpu.load(self._kernels).decode_add, frame, acc)

    def _run(
        self, kernel: Callable[..., int], arrays: tuple[np.ndarray, ...], payload: np.ndarray, stream: int
    ) -> tuple[int, int]:
        """Encode with `kernel`, whose first arguments are `arrays` (the last is written where there are two)."""
        src = arrays[0]
        count, size = src.size, src.itemsize
        blocks, rest = divmod(count, self.block)
        scales, codes, raw = self._sections(payload, count, src.dtype)
        key = None if self.rounding == "nearest" else random_key(self.seed, stream)
        if not rest:
            found = kernel(*arrays, scales, codes, raw, self.block, key, 0) if count else 0
            raw_count = found * self.block
        else:
            full = count - rest
            whole = full // self._codes_per_byte
            found = 0
            if blocks:
                parts = (array[:full] for array in arrays)
                found = kernel(*parts, scales[:blocks], codes[:whole], raw, self.block, key, 0)
            raw_count = found * self.block
            last = _last(arrays, full, self._filled(rest))
            is_raw = kernel(*last, scales[blocks:], codes[whole:], raw[raw_count:], last[0].size, key, blocks)
            if len(arrays) == 2:
                arrays[1][full:] = last[1][:rest]
            found += is_raw
            raw_count += is_raw * last[0].size
        start = self._codes_offset(count)
        payload[scales.nbytes : start] = 0
        stop = start + codes.nbytes
        if not found:
            return stop, 0
        payload[stop : align(stop)] = 0
        return align(stop) + raw_count * size, found

    def _unpack(self, kernel: Callable[..., None], frame: Frame, dst: np.ndarray) -> None:
        count = dst.size
        blocks, rest = divmod(count, self.block)
        scales, codes, raw = self._checked_sections(frame)
        if not rest:
            if count:
                kernel(scales, codes, raw, self.block, dst)
            return
        full = count - rest
        whole = full // self._codes_per_byte
        if blocks:
            kernel(scales[:blocks], codes[:whole], raw, self.block, dst[:full])
        (last,) = _last((dst,), full, self._filled(rest))
        kernel(scales[blocks:], codes[whole:], raw[raw.size - last.size :], last.size, last)
        dst[full:] = last[:rest]

    def _checked_sections(self, frame: Frame) -> _Sections:
        count, dtype = frame.count, working_dtype(frame.dtype)
        nbytes = self._codes_offset(count) + self._code_nbytes(count)
        if frame.payload.size < nbytes:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {count} elements take at least {nbytes}")
        scales = self._scales(frame.payload, count)
        kernels = cpu.load(self._kernels)
        found = kernels.count_raw(scales)
        if found != frame.extra:
            raise FrameError(f"frame: {found} blocks are marked as raw, the header tells of {frame.extra}")
        if found:
            rest = count % self.block
            missing = self.block - self._filled(rest) if rest and kernels.count_raw(scales[-1:]) else 0
            nbytes = self._raw_offset(count) + (found * self.block - missing) * dtype.itemsize
        if frame.payload.size != nbytes:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, expected {nbytes}")
        return self._sections(frame.payload, count, dtype)

    def _sections(self, payload: np.ndarray, count: int, dtype: np.dtype) -> _Sections:
        start = self._codes_offset(count)
        stop = start + self._code_nbytes(count)
        raw = align(stop)
        return _Sections(
            self._scales(payload, count),
            payload[start:stop].view(self._code_dtype),
            payload[raw : raw + self._filled(count) * dtype.itemsize].view(dtype),
        )

    def _scales(self, payload: np.ndarray, count: int) -> np.ndarray:
        return payload[: self._scale_dtype.itemsize * self._blocks(count)].view(self._scale_dtype)

    def _blocks(self, count: int) -> int:
        return -(-count // self.block)

    def _filled(self, count: int) -> int:
        return -(-count // self._granule) * self._granule

    def _code_nbytes(self, count: int) -> int:
        return self._filled(count) // self._codes_per_byte

    def _codes_offset(self, count: int) -> int:
        return align(self._scale_dtype.itemsize * self._blocks(count))

    def _raw_offset(self, count: int) -> int:
        return self._codes_offset(count) + align(self._code_nbytes(count))


@dataclass(frozen=True)
class Int8(_BlockQuantiser):
    """Integers -127 ... 127 with one float32 scale a block.

    With m the largest magnitude of an element's block, its error is at most ``m / 254`` to nearest and ``m / 127``
    stochastically (times ``1 + 2**-13``, for the rounding of the arithmetic itself). Stochastic rounding is
    unbiased, to 2**-15 of a step.
    Blocks with a NaN, an infinity, or an m of at least 2**127 or below 2**-119 (but not 0) travel as they are.
    -0.0 may become 0.0.

    Parameters
    ----------
    block : int
        Elements that share a scale; even, at least 16.
    rounding : {"nearest", "stochastic"}
        How values between two levels are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> Int8(block=128, rounding="stochastic").spec
    'int8:block=128,rounding=stochastic'
    """

    codec_id: ClassVar[str] = "int8"
    number: ClassVar[int] = 4
    summary: ClassVar[str] = "8-bit integers with a scale a block, error <= 1/254 of the block's largest magnitude"
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.int8)
    _codes_per_byte: ClassVar[int] = 1


@dataclass(frozen=True)
class Int4(_BlockQuantiser):
    """Integers -7 ... 7, two a byte, with one float32 scale a block.

    With m the largest magnitude of an element's block, its error is at most ``m / 14`` to nearest and ``m / 7``
    stochastically (times ``1 + 2**-13``, for the rounding of the arithmetic itself). Stochastic rounding is
    unbiased, to 2**-15 of a step.
    Blocks with a NaN, an infinity, or an m of at least 2**127 or below 2**-119 (but not 0) travel as they are.
    -0.0 may become 0.0.

    Parameters
    ----------
    block : int
        Elements that share a scale; even, at least 16.
    rounding : {"nearest", "stochastic"}
        How values between two levels are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> Int4(feedback=True).spec
    'int4:feedback'
    """

    codec_id: ClassVar[str] = "int4"
    number: ClassVar[int] = 5
    summary: ClassVar[str] = "4-bit integers with a scale a block, error <= 1/14 of the block's largest magnitude"
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    _codes_per_byte: ClassVar[int] = 2


def _last(arrays: tuple[np.ndarray, ...], start: int, count: int) -> tuple[np.ndarray, ...]:
    """Copies of each array from `start` on, filled up with zeros to `count` elements."""
    copies = []
    for array in arrays:
        copy = np.zeros(count, array.dtype)
        copy[: array.size - start] = array[start:]
        copies.append(copy)
    return tuple(copies)
