"""Codes of a few bits with a scale a block: the payload that all such codecs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import check_choice, check_flag, check_integer
from collcomp.codecs.streams import random_key
from collcomp.devices import counters, empty, host_copy, on_device, read
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cpu, cuda, kernels_for

__all__ = ["BlockCodec", "RoundedBlockCodec"]


#: Other ranks' frames that a device sums in one pass: a kernel has room for so many arguments, and is compiled for each
#: number of them.
_MOST_AT_ONCE = 15


class _Sections(NamedTuple):
    scales: np.ndarray
    codes: np.ndarray
    raw: np.ndarray


@dataclass(frozen=True)
class BlockCodec(Codec):
    """The payload: scales, codes, raw blocks; each section starts at a multiple of 64 bytes.

    The last block is as long as what is left, padded to an even number of elements and to whole bytes of codes.
    """

    _codes_per_byte: ClassVar[int]
    #: Module of the kernels, to which the dtypes of scales and codes tell the format.
    _kernels: ClassVar[str] = "quantised"
    _scale_dtype: ClassVar[np.dtype] = np.dtype(np.float32)
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    #: Elements that `_encode_sum` sums before it encodes them, where blocks are shorter.
    _group: ClassVar[int] = 0

    block: int = 256

    def __post_init__(self) -> None:
        check_integer("block", self.block, 16, multiple=self._multiple)

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Scales, codes, and every block raw."""
        return self._raw_offset(count) + self._padded_count(count) * dtype.itemsize

    def fixed_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Scales and codes."""
        return self._codes_offset(count) + self._code_nbytes(count)

    def _key(self, stream: int) -> int | None:
        """The kernels' key of random stream number `stream`; None rounds to nearest."""
        return None

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._run_named("encode", (src,), payload, stream)

    def _encode_keep(self, src: np.ndarray, kept: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._run_named("encode_keep", (src, kept), payload, stream)

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
        if not frames or any(frame.extra for frame in frames) or (on_device(own) and len(frames) > _MOST_AT_ONCE):
            return None
        others = [self._checked_sections(frame) for frame in frames]
        if on_device(own):
            kept = empty(own.size, own.dtype, own) if kept is None else kept
            before = (tuple(one.scales for one in others), tuple(one.codes for one in others))
            return self._run_on_device("encode_sum", (own, position, divisor, kept), payload, stream, before)
        total = np.empty(max(self.block, self._group), own.dtype)
        given = 1 if kept is None else 2

        def encode_sum(*arguments: Any) -> int:
            arrays, (scales, codes, *rest) = arguments[:given], arguments[given:]
            first = rest[-1]
            start = first * self.block // self._codes_per_byte
            return cpu.load(self._kernels).encode_sum(
                tuple(sections.scales[first : first + len(scales)] for sections in others),
                tuple(sections.codes[start : start + codes.size] for sections in others),
                arrays[0],
                position,
                own.dtype.type(divisor),
                total[: min(total.size, arrays[0].size)],
                arrays[1] if given == 2 else None,
                *(scales, codes, *rest),
            )

        return self._run(encode_sum, (own,) if kept is None else (own, kept), payload, stream)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        return self._run_named("encode_feedback", (src, residual), payload, stream)

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        self._unpack("decode", frame, dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        self._unpack("decode_add", frame, acc)

    def _run_named(
        self, name: str, arrays: tuple[np.ndarray, ...], payload: np.ndarray, stream: int
    ) -> tuple[int, int]:
        if on_device(payload):
            return self._run_on_device(name, arrays, payload, stream)
        return self._run(getattr(cpu.load(self._kernels), name), arrays, payload, stream)

    def _run(
        self, kernel: Callable[..., int], arrays: tuple[np.ndarray, ...], payload: np.ndarray, stream: int
    ) -> tuple[int, int]:
        """Encode with `kernel`, whose first arguments are `arrays` (the last is written where there are two)."""
        src = arrays[0]
        count, size = src.size, src.itemsize
        blocks, rest = divmod(count, self.block)
        scales, codes, raw = self._sections(payload, count, src.dtype)
        key = self._key(stream)
        full = count - rest
        whole = full // self._codes_per_byte
        found = raw_count = 0
        if blocks:
            parts = arrays if not rest else (array[:full] for array in arrays)
            found = kernel(*parts, scales[:blocks], codes[:whole], raw, self.block, *self._how(full), key, 0)
            raw_count = found * self.block
        if rest:
            last = [self._padded(array, full) for array in arrays]
            padded = last[0].size
            how = self._how(rest)
            is_raw = kernel(*last, scales[blocks:], codes[whole:], raw[raw_count:], padded, *how, key, blocks)
            if len(arrays) == 2:
                arrays[1][full:] = last[1][:rest]
            found += is_raw
            raw_count += is_raw * padded
        start = self._codes_offset(count)
        payload[scales.nbytes : start] = 0
        stop = start + codes.nbytes
        if not found:
            return stop, 0
        payload[stop : align(stop)] = 0
        return align(stop) + raw_count * size, found

    def _run_on_device(
        self, name: str, arguments: tuple[Any, ...], payload: Any, stream: int, before: tuple[Any, ...] = ()
    ) -> tuple[int, int]:
        """Encode by the device's kernel `name`, whose first arguments are `before` and `arguments`.

        The last of these are the values, or what has become of them. It waits for the number of raw blocks.
        """
        held = arguments[-1]
        kernels, how = cuda.load(self._kernels), self._how(0)[:1]
        scales, codes, raw = self._sections(payload, held.size, held.dtype)
        gap = payload[scales.nbytes : self._codes_offset(held.size)]
        if gap.size:
            gap.fill(0)
        if not held.size:
            return codes.nbytes, 0
        getattr(kernels, name)(*before, *arguments, scales, codes, self.block, *how, self._key(stream), counters())
        found = read()[0]
        stop = self._codes_offset(held.size) + codes.nbytes
        if not found:
            return stop, 0
        payload[stop : align(stop)].fill(0)
        places = empty(len(scales), np.dtype(np.int32), payload)
        kernels.locate(scales, places)
        kernels.copy_raw(held, scales, places, self.block, *how, raw, name == "encode_feedback")
        rest = held.size % self.block
        short = self.block - self._padded_count(rest) if rest and self._is_raw(scales[-1:]) else 0
        return align(stop) + (found * self.block - short) * held.itemsize, found

    def _unpack(self, name: str, frame: Frame, dst: np.ndarray) -> None:
        count, how = dst.size, self._how(0)[:1]
        blocks, rest = divmod(count, self.block)
        scales, codes, raw = self._checked_sections(frame)
        kernel = getattr(kernels_for(dst, self._kernels), name)
        if on_device(dst):
            places = None
            if frame.extra:
                places = empty(len(scales), np.dtype(np.int32), dst)
                cuda.load(self._kernels).locate(scales, places)
            if count:
                kernel(scales, codes, raw, self.block, *how, dst, places)
            return
        full = count - rest
        whole = full // self._codes_per_byte
        if blocks:
            kernel(scales[:blocks], codes[:whole], raw, self.block, *how, dst[:full])
        if rest:
            last = self._padded(dst, full)
            kernel(scales[blocks:], codes[whole:], raw[raw.size - last.size :], last.size, *how, last)
            dst[full:] = last[:rest]

    def _padded(self, array: np.ndarray, start: int) -> np.ndarray:
        """A copy of the elements from `start` on, padded so that the scale of their block stays what it is."""
        used = array.size - start
        copy = np.empty(self._padded_count(used), array.dtype)
        copy[:used] = array[start:]
        copy[used:] = 0 if self._scale_count == 1 else array[-1]
        return copy

    def _checked_sections(self, frame: Frame) -> _Sections:
        count, dtype = frame.count, working_dtype(frame.dtype)
        nbytes = self._codes_offset(count) + self._code_nbytes(count)
        if frame.payload.size < nbytes:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {count} elements take at least {nbytes}")
        scales = self._scales(frame.payload, count)
        found = frame.extra if on_device(scales) else cpu.load(self._kernels).count_raw(scales)
        if found != frame.extra:
            raise FrameError(f"frame: {found} blocks are marked as raw, the header tells of {frame.extra}")
        if found:
            rest = count % self.block
            missing = self.block - self._padded_count(rest) if rest and self._is_raw(scales[-1:]) else 0
            nbytes = self._raw_offset(count) + (found * self.block - missing) * dtype.itemsize
        frame.check_nbytes(nbytes)
        return self._sections(frame.payload, count, dtype)

    def _is_raw(self, scale: np.ndarray) -> bool:
        """Whether a block with this scale is raw; on a device it waits."""
        return bool(cpu.load(self._kernels).count_raw(host_copy(scale)))

    def _sections(self, payload: np.ndarray, count: int, dtype: np.dtype) -> _Sections:
        start = self._codes_offset(count)
        stop = start + self._code_nbytes(count)
        raw = align(stop)
        return _Sections(
            self._scales(payload, count),
            payload[start:stop].view(self._code_dtype),
            payload[raw : raw + self._padded_count(count) * dtype.itemsize].view(dtype),
        )

    def _scales(self, payload: np.ndarray, count: int) -> np.ndarray:
        scales = payload[: self._scale_nbytes(count)].view(self._scale_dtype)
        return scales if self._scale_count == 1 else scales.reshape(-1, self._scale_count)

    @cached_property
    def _scale_count(self) -> int:
        """float32 numbers a block: the scale, and perhaps an offset."""
        return 1

    @cached_property
    def _planes(self) -> tuple[int, ...]:
        return tuple(range(self._codes_per_byte))

    @cached_property
    def _multiple(self) -> int:
        return max(2, self._codes_per_byte)

    def _how(self, count: int) -> tuple[Any, ...]:
        """What encoders are told between `block` and the key, of blocks with `count` elements; decoders the first."""
        return self._planes, count

    def _padded_count(self, count: int) -> int:
        return -(-count // self._multiple) * self._multiple

    def _scale_nbytes(self, count: int) -> int:
        return self._scale_dtype.itemsize * self._scale_count * -(-count // self.block)

    def _code_nbytes(self, count: int) -> int:
        return self._padded_count(count) // self._codes_per_byte

    def _codes_offset(self, count: int) -> int:
        return align(self._scale_nbytes(count))

    def _raw_offset(self, count: int) -> int:
        return self._codes_offset(count) + align(self._code_nbytes(count))


@dataclass(frozen=True)
class RoundedBlockCodec(BlockCodec):
    """Blocks whose elements are rounded to nearest or at random, with feedback or without."""

    rounding: str = "nearest"
    seed: int = 0
    feedback: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rounding", self.rounding, ("nearest", "stochastic"))
        check_integer("seed", self.seed, 0)
        check_flag("feedback", self.feedback)

    def _key(self, stream: int) -> int | None:
        return None if self.rounding == "nearest" else random_key(self.seed, stream)
