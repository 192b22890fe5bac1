"""Blocks that become a scale each and codes of a few bits, packed by width: the payload and its checks."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.devices import empty, host_copy, on_device, read
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cuda
from collcomp.kernels.cpu import PACKED, PACKED_LANES

__all__ = ["BitBlocks", "Sections"]


class Sections(NamedTuple):
    """Views of a payload."""

    scales: np.ndarray
    words: np.ndarray
    raw: np.ndarray


class BitBlocks(Codec):
    """The payload: scales (float32), packed codes, raw blocks; each section starts at a multiple of 64 bytes.

    The scale of a raw block is NaN, its codes are zero. `extra` is the number of raw blocks. The last block is as long
    as what is left.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """Bits of a code."""

    @abstractmethod
    def _run(
        self, src: np.ndarray, residual: np.ndarray | None, kept: np.ndarray | None, sections: Sections, stream: int
    ) -> None:
        """Encode `src`, plus `residual` if there is one; write what can be decoded to `kept` if there is one."""

    def _code_count(self, count: int) -> int:
        """Codes of `count` elements; a multiple of `PACKED`."""
        return -(-count // PACKED) * PACKED

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Scales, codes, and every block raw."""
        return self._raw_offset(count) + count * dtype.itemsize

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._encode_with(src, None, None, payload, stream)

    def _encode_keep(self, src: np.ndarray, kept: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._encode_with(src, None, kept, payload, stream)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        return self._encode_with(src, residual, None, payload, stream)

    def _encode_with(
        self,
        src: np.ndarray,
        residual: np.ndarray | None,
        kept: np.ndarray | None,
        payload: np.ndarray,
        stream: int,
    ) -> tuple[int, int]:
        count, dtype = src.size, src.dtype
        sections = self._sections(payload, count, dtype)
        if count:
            self._run(src, residual, kept, sections, stream)
        found = self._count_raw(sections.scales)
        payload[sections.scales.nbytes : self._words_offset(count)] = 0
        stop = self._words_offset(count) + sections.words.nbytes
        if not found:
            return stop, 0
        payload[stop : self._raw_offset(count)] = 0
        if on_device(payload):
            places = empty(len(sections.scales), np.dtype(np.int32), payload)
            raw_blocks = cuda.load("raw_blocks")
            raw_blocks.locate(sections.scales, places)
            values = src if residual is None else residual
            raw_blocks.copy_raw(values, sections.scales, places, self.block, 1, sections.raw, residual is not None)
        return self._raw_offset(count) + self._raw_nbytes(sections.scales, found, count, dtype), found

    def _checked_sections(self, frame: Frame) -> Sections:
        count, dtype = frame.count, working_dtype(frame.dtype)
        nbytes = self._words_offset(count) + self._word_nbytes(count)
        if frame.payload.size < nbytes:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {count} elements take at least {nbytes}")
        sections = self._sections(frame.payload, count, dtype)
        found = frame.extra if on_device(sections.scales) else int(np.isnan(sections.scales).sum())
        if found != frame.extra:
            raise FrameError(f"frame: {found} blocks are marked as raw, the header tells of {frame.extra}")
        if found:
            nbytes = self._raw_offset(count) + self._raw_nbytes(sections.scales, found, count, dtype)
        frame.check_nbytes(nbytes)
        return sections

    def _sections(self, payload: np.ndarray, count: int, dtype: np.dtype) -> Sections:
        start, raw = self._words_offset(count), self._raw_offset(count)
        # Of a frame, the last section is as long as what arrived.
        stop = min(raw + count * dtype.itemsize, max(payload.size, raw))
        stop -= (stop - raw) % dtype.itemsize
        return Sections(
            payload[: 4 * self._blocks(count)].view(np.float32),
            payload[start : start + self._word_nbytes(count)].view(np.uint32),
            payload[raw:stop].view(dtype),
        )

    def _count_raw(self, scales: np.ndarray) -> int:
        """The number of raw blocks of a message that was encoded; on a device, it was added to `counters`."""
        if on_device(scales):
            return read()[0] if scales.size else 0
        return int(np.isnan(scales).sum())

    def _raw_nbytes(self, scales: np.ndarray, found: int, count: int, dtype: np.dtype) -> int:
        rest = count % self.block
        missing = self.block - rest if rest and np.isnan(host_copy(scales[-1:])[0]) else 0
        return (found * self.block - missing) * dtype.itemsize

    def _blocks(self, count: int) -> int:
        return -(-count // self.block)

    def _word_nbytes(self, count: int) -> int:
        return self._code_count(count) // PACKED * PACKED_LANES * self.width * 4

    def _words_offset(self, count: int) -> int:
        return align(4 * self._blocks(count))

    def _raw_offset(self, count: int) -> int:
        return align(self._words_offset(count) + self._word_nbytes(count))
