"""Planes of bytes, compressed by zstd where that pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np

from collcomp.codecs.base import Codec
from collcomp.codecs.checks import check_integer
from collcomp.codecs.libraries import check_library, load_library
from collcomp.errors import FrameError
from collcomp.frame import Frame
from collcomp.kernels import cpu

__all__ = ["Planes"]

_LOWEST, _HIGHEST = -7, 22
#: A plane travels as it is unless zstd saves this share of its sample.
_LEAST_GAIN = 0.02
_SAMPLE = 1 << 14
_SAMPLES = 4


@dataclass(frozen=True)
class Planes(Codec):
    """All first bytes of the elements, then all second ones, and so on: each plane by zstd where that pays.

    Every value arrives bit by bit, NaN and -0.0 too. Signs stand behind the mantissas of floats, so that the first
    plane of float32 and bfloat16 is the exponent. A sample decides whether a plane is compressed: those of mantissas
    that are noise cost a copy.

    On gradients the exponents alone shrink, to some 2.5 to 3 bits: 1.45 times less in bfloat16, 1.18 in float32. That
    is a little more than `exponents` reaches, ten times slower (about 1 GB/s of float32, 0.3 of bfloat16). It is for
    values that have more order: integers, many equal values, few significant bits.

    Parameters
    ----------
    level : int
        Of zstd, -7 to 22: higher ones are slower and save little more.

    Examples
    --------
    >>> Planes(level=3).spec
    'planes:level=3'

    Needs the library zstandard: ``pip install 'collcomp[codecs]'``.
    """

    codec_id: ClassVar[str] = "planes"
    number: ClassVar[int] = 29
    summary: ClassVar[str] = "lossless: byte planes by zstd where it pays, 1.4 x in bf16, 1.2 x in fp32 on gradients"
    lossless: ClassVar[bool] = True
    library: ClassVar[str | None] = "zstandard"

    level: int = 1

    def __post_init__(self) -> None:
        check_integer("level", self.level, _LOWEST)
        if self.level > _HIGHEST:
            raise ValueError(f"level: expected an integer from {_LOWEST} to {_HIGHEST}, got {self.level!r}")
        check_library(self.codec_id, "zstandard")

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The size of each plane, and every plane as it is."""
        return (8 + count) * dtype.itemsize

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        bits = src.view(f"u{src.itemsize}")
        planes = np.empty((src.itemsize, src.size), np.uint8)
        cpu.load("planes").split(bits, _turn(src.dtype), planes)
        sizes = payload[: 8 * src.itemsize].view(np.int64)
        end = sizes.nbytes
        for p, plane in enumerate(planes):
            packed = np.frombuffer(self._compress(plane), np.uint8) if self._pays(plane) else plane
            if packed.size >= plane.size:
                packed = plane
            sizes[p] = packed.size
            payload[end : end + packed.size] = packed
            end += packed.size
        return end, 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        head = 8 * dst.itemsize
        if frame.payload.size < head:
            raise FrameError(
                f"frame: {frame.payload.size} payload bytes cannot hold the sizes of {dst.itemsize} planes"
            )
        sizes = frame.payload[:head].view(np.int64).tolist()
        if min(sizes) < 0 or max(sizes) > dst.size or head + sum(sizes) != frame.payload.size:
            raise FrameError(f"frame: planes of {sizes} bytes in {frame.payload.size} payload bytes")
        planes = np.empty((dst.itemsize, dst.size), np.uint8)
        start = head
        for plane, size in zip(planes, sizes, strict=True):
            packed = frame.payload[start : start + size]
            plane[:] = packed if size == dst.size else _decompress(packed, dst.size)
            start += size
        cpu.load("planes").join(planes, _turn(dst.dtype), dst.view(f"u{dst.itemsize}"))

    def _pays(self, plane: np.ndarray) -> bool:
        if plane.size <= _SAMPLES * _SAMPLE:
            return True
        step = (plane.size - _SAMPLE) // (_SAMPLES - 1)
        sample = np.concatenate([plane[k * step : k * step + _SAMPLE] for k in range(_SAMPLES)])
        return len(self._compress(sample)) < (1 - _LEAST_GAIN) * sample.size

    def _compress(self, plane: np.ndarray) -> bytes:
        # A compressor of its own for each plane, because they are not safe for threads.
        return load_library("zstandard").ZstdCompressor(level=self.level).compress(plane)


def _turn(dtype: np.dtype) -> int:
    """Floats have a sign bit that is moved behind the mantissa."""
    return int(dtype.kind == "f" or dtype == ml_dtypes.bfloat16)


def _decompress(packed: np.ndarray, size: int) -> np.ndarray:
    """`size` bytes from a frame of zstd's; nothing is allocated that is larger than them or the frame itself."""
    zstandard = load_library("zstandard")
    try:
        # Contiguous and writable or not, aligned or not: zstd takes any bytes.
        if zstandard.frame_content_size(packed) != size:
            raise FrameError(f"frame: a plane does not tell of {size} bytes")
        plane = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(f"frame: a plane is damaged: {error}") from None
    return np.frombuffer(plane, np.uint8)
