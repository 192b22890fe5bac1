"""Integers without the bits that they do not use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cpu
from collcomp.kernels.cpu import PACKED

__all__ = ["Packed"]


@dataclass(frozen=True)
class Packed(Codec):
    """Integers in as many bits as the largest of each block of 256 needs; lossless.

    For counts, indices, and the codes that sum-compatible codecs reduce. Floats travel too, as the integers that their
    bits are, but only zeros save anything there.

    The payload: a width a block (uint8), then the blocks' words, from a multiple of 64 bytes on.

    Examples
    --------
    >>> Packed().spec
    'packed'
    """

    codec_id: ClassVar[str] = "packed"
    number: ClassVar[int] = 35
    summary: ClassVar[str] = "integers in as many bits as each block of 256 needs"
    lossless: ClassVar[bool] = True
    block: ClassVar[int] = PACKED  # type: ignore[misc]

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """A width a block, and every element of the block in full."""
        return self._words_offset(count) + self._blocks(count) * PACKED * max(dtype.itemsize, 1)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        if not src.size:
            return 0, 0
        widths, start = self._widths(payload, src.size), self._words_offset(src.size)
        payload[widths.size : start] = 0
        words = payload[start : start + self._blocks(src.size) * PACKED * src.itemsize].view(np.uint32)
        written = cpu.load("integers").encode(_as_integers(src), widths, words, _room())
        return start + 4 * written, 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        if dst.size:
            cpu.load("integers").decode(*self._checked_sections(frame), _as_integers(dst), _room())

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        if acc.dtype.kind in "iu" and acc.dtype == frame.dtype:
            if acc.size:
                cpu.load("integers").add(*self._checked_sections(frame), acc, _room())
        else:
            super()._decode_add(frame, acc)

    def _checked_sections(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        start = self._words_offset(frame.count)
        if frame.payload.size < start or frame.extra:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {frame.count} elements take at least {start}")
        widths = self._widths(frame.payload, frame.count)
        words = cpu.load("integers").count_words(widths, 8 * frame.dtype.itemsize)
        if words < 0 or frame.payload.size != start + 4 * words:
            raise FrameError(f"frame: {frame.payload.size} payload bytes do not fit the widths of the blocks")
        return widths, frame.payload[start:].view(np.uint32)

    def _widths(self, payload: np.ndarray, count: int) -> np.ndarray:
        return payload[: self._blocks(count)]

    def _blocks(self, count: int) -> int:
        return -(-count // PACKED)

    def _words_offset(self, count: int) -> int:
        return align(self._blocks(count))


def _as_integers(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind in "iu" else values.view(f"u{values.itemsize}")


def _room() -> np.ndarray:
    return np.empty(PACKED, np.uint32)
