"""Codecs of other libraries: zfp, Blosc2, and the byte compressors of numcodecs."""

from __future__ import annotations

import bz2
import zlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import check_choice, check_flag, check_integer
from collcomp.codecs.libraries import check_library, load_library
from collcomp.errors import FrameError
from collcomp.frame import Frame

__all__ = ["ZFP", "Blosc2", "Numcodecs"]

#: Above it libraries would need 64-bit sizes, which not all have: such frames travel as they are.
_LARGEST_NBYTES = 1 << 30
#: Decompressors that stop at a given size, by their names in numcodecs, which uses the same modules.
_STREAMS: dict[str, Callable[[], Any]] = {
    "zlib": zlib.decompressobj,
    "bz2": bz2.BZ2Decompressor,
}


@dataclass(frozen=True)
class ZFP(Codec):
    """zfp at a fixed rate: blocks of 4 neighbours, transformed, in ``4 * rate`` bits each.

    With m the largest magnitude of an element's block, its error is at most ``m * 2**(9 - rate)``, or 2**-93
    (float64: 2**-957) where that is more; the largest errors seen are an eighth (float64: a third) of that, and those
    of smooth values far smaller. Frames with a NaN, an infinity, or a magnitude of more than a 64th of the largest
    float travel as they are. -0.0 may become 0.0.
    It encodes and decodes 0.1 to 0.3 GB/s: for slow links, and fields that vary smoothly.

    Parameters
    ----------
    rate : int
        Bits an element, 4 to 32.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> ZFP(rate=8).spec
    'zfp:rate=8'

    Needs the library zfpy: ``pip install 'collcomp[codecs]'``.

    Source: Lindstrom, "Fixed-Rate Compressed Floating-Point Arrays", TVCG 2014.
    """

    codec_id: ClassVar[str] = "zfp"
    number: ClassVar[int] = 31
    summary: ClassVar[str] = "zfp at a fixed rate, for fields that vary smoothly (needs zfpy)"
    library: ClassVar[str | None] = "zfpy"

    block = 4

    rate: int = 16
    feedback: bool = False

    def __post_init__(self) -> None:
        check_integer("rate", self.rate, 4)
        if self.rate > 32:
            raise ValueError(f"rate: expected an integer from 4 to 32, got {self.rate!r}")
        check_flag("feedback", self.feedback)
        check_library(self.codec_id, "zfpy")

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """By the bits that are left for each value."""
        return np.maximum(peak * 2.0 ** (9 - self.rate), 2.0**-93)

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The compressed stream, or the values as they are."""
        return max(self._stream_nbytes(count), count * dtype.itemsize)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        if not src.size:
            return 0, 0
        if not max(-src.min(), src.max()) < np.finfo(src.dtype).max / 64:  # nor is NaN
            payload[: src.nbytes] = src.view(np.uint8)
            return src.nbytes, 1
        packed = load_library("zfpy").compress_numpy(src, rate=self.rate, write_header=False)
        nbytes = self._stream_nbytes(src.size)
        if len(packed) != nbytes:
            raise ValueError(f"codec: zfp made {len(packed)} bytes of {src.size} elements, expected {nbytes}")
        payload[:nbytes] = np.frombuffer(packed, np.uint8)
        return nbytes, 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        dtype = working_dtype(frame.dtype)
        nbytes = frame.count * dtype.itemsize if frame.extra else self._stream_nbytes(frame.count)
        if frame.extra > 1 or frame.payload.size != nbytes:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, expected {nbytes}")
        if frame.extra:
            dst.view(np.uint8)[:] = frame.payload
        elif dst.size:
            zfpy = load_library("zfpy")
            kind = zfpy.dtype_to_ztype(dtype)
            zfpy._decompress(frame.payload.tobytes(), kind, dst.shape, out=dst, rate=self.rate)

    def _stream_nbytes(self, count: int) -> int:
        """Blocks of 4 in whole words of 64 bits."""
        nbits = -(-count // 4) * 4 * self.rate
        return -(-nbits // 64) * 8


@dataclass(frozen=True)
class _Bytes(Codec):
    """A lossless compressor of bytes; frames that it does not shrink travel as they are."""

    lossless: ClassVar[bool] = True

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The values as they are."""
        return count * dtype.itemsize

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        given = src.view(np.uint8)
        packed = given
        if 0 < given.size <= _LARGEST_NBYTES:
            packed = np.frombuffer(self._compress(given, src.itemsize), np.uint8)
            packed = packed if packed.size < given.size else given
        payload[: packed.size] = packed
        return packed.size, 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        out = dst.view(np.uint8)
        if frame.payload.size == out.size:
            out[:] = frame.payload
        elif frame.payload.size > min(out.size, _LARGEST_NBYTES):
            raise FrameError(f"frame: {frame.payload.size} payload bytes for {out.size} bytes of values")
        else:
            self._decompress(frame.payload, dst.itemsize, out)

    @abstractmethod
    def _compress(self, given: np.ndarray, itemsize: int) -> bytes:
        """`given` (uint8), compressed."""

    @abstractmethod
    def _decompress(self, packed: np.ndarray, itemsize: int, out: np.ndarray) -> None:
        """Fill `out` (uint8); `FrameError` when `packed` is not of that many bytes."""


@dataclass(frozen=True)
class Blosc2(_Bytes):
    """Blosc2: bytes or bits of the elements shuffled, then a fast compressor.

    Every value arrives bit by bit, NaN and -0.0 too. On gradients it reaches what their exponents allow, 1.18 in
    float32 and 1.44 in bfloat16, at 0.2 to 0.7 GB/s. It is for values that have more order than that.

    Parameters
    ----------
    compressor : {"zstd", "lz4", "lz4hc", "blosclz", "zlib"}
    level : int
        Of the compressor, 1 to 9.
    filter : {"shuffle", "bitshuffle", "none"}
        What the values are put through first.

    Examples
    --------
    >>> Blosc2(compressor="lz4", filter="bitshuffle").spec
    'blosc2:compressor=lz4,filter=bitshuffle'

    Needs the library blosc2: ``pip install 'collcomp[codecs]'``.
    """

    codec_id: ClassVar[str] = "blosc2"
    number: ClassVar[int] = 32
    summary: ClassVar[str] = "lossless: Blosc2's shuffles and compressors (needs blosc2)"
    library: ClassVar[str | None] = "blosc2"
    #: Numbers in the header of a chunk.
    _COMPRESSORS: ClassVar[dict[str, int]] = {"blosclz": 0, "lz4": 1, "lz4hc": 2, "zlib": 4, "zstd": 5}
    _FILTERS: ClassVar[dict[str, int]] = {"none": 0, "shuffle": 1, "bitshuffle": 2}
    _HEADER_NBYTES: ClassVar[int] = 32

    compressor: str = "zstd"
    level: int = 1
    filter: str = "shuffle"

    def __post_init__(self) -> None:
        check_choice("compressor", self.compressor, tuple(self._COMPRESSORS))
        check_integer("level", self.level, 1)
        if self.level > 9:
            raise ValueError(f"level: expected an integer from 1 to 9, got {self.level!r}")
        check_choice("filter", self.filter, tuple(self._FILTERS))
        check_library(self.codec_id, "blosc2")

    def _compress(self, given: np.ndarray, itemsize: int) -> bytes:
        blosc2 = load_library("blosc2")
        return blosc2.compress2(
            given,
            codec=blosc2.Codec(self._COMPRESSORS[self.compressor]),
            clevel=self.level,
            filters=[blosc2.Filter(self._FILTERS[self.filter])],
            filters_meta=[0],
            typesize=itemsize,
            nthreads=1,
        )

    def _decompress(self, packed: np.ndarray, itemsize: int, out: np.ndarray) -> None:
        # The header first: sizes, and that it names no other filter or compressor, such as one to be loaded.
        head = packed[: self._HEADER_NBYTES]
        expected = [itemsize, out.size, packed.size, [self._FILTERS[self.filter], 0, 0, 0, 0, 0]]
        if head.size < self._HEADER_NBYTES or expected != [
            head[3],
            int.from_bytes(head[4:8].tobytes(), "little"),
            int.from_bytes(head[12:16].tobytes(), "little"),
            head[16:22].tolist(),
        ]:
            raise FrameError("frame: the header of the Blosc2 chunk does not fit")
        try:
            load_library("blosc2").decompress2(packed, dst=out, nthreads=1)
        except (RuntimeError, ValueError) as error:
            raise FrameError(f"frame: Blosc2 could not decompress it: {error}") from None


@dataclass(frozen=True)
class Numcodecs(_Bytes):
    """A byte compressor of numcodecs, for values that hold many equal bytes side by side.

    Every value arrives bit by bit, NaN and -0.0 too. Bytes are compressed in the order in which they lie in memory,
    where those of floats hardly repeat: float32 gradients shrink by 1.07, by lz4 not at all (`exponents` and `planes`
    are made for them). zlib and bz2 compress less than 0.1 GB/s. The other codecs of numcodecs lose bits, or do not
    compress bytes, or take equal bytes to different ones (gzip), or let a frame decide how much memory they need
    (lzma).

    Parameters
    ----------
    name : {"zstd", "lz4", "zlib", "bz2"}
        Which; in a spec it stands first and without its name.
    level : int, optional
        How hard it tries: level of zstd (1 to 22), zlib and bz2 (1 to 9); acceleration of lz4, which compresses less
        the higher it is. That of numcodecs by default.

    Examples
    --------
    >>> Numcodecs("zlib", level=3).spec
    'numcodecs:zlib,level=3'

    Needs the library numcodecs: ``pip install 'collcomp[codecs]'``.
    """

    codec_id: ClassVar[str] = "numcodecs"
    number: ClassVar[int] = 33
    summary: ClassVar[str] = "lossless: zstd, lz4, zlib or bz2 on the plain bytes (needs numcodecs)"
    library: ClassVar[str | None] = "numcodecs"
    positional: ClassVar[str | None] = "name"
    #: Name -> the parameter that `level` is, and its range.
    _LEVELS: ClassVar[dict[str, tuple[str, int, int]]] = {
        "zstd": ("level", 1, 22),
        "lz4": ("acceleration", 1, 65537),
        "zlib": ("level", 1, 9),
        "bz2": ("level", 1, 9),
    }

    name: str = "zstd"
    level: int | None = None

    def __post_init__(self) -> None:
        check_choice("name", self.name, tuple(self._LEVELS))
        if self.level is not None:
            _, low, high = self._LEVELS[self.name]
            check_integer("level", self.level, low)
            if self.level > high:
                raise ValueError(f"level: expected an integer from {low} to {high}, got {self.level!r}")
        check_library(self.codec_id, "numcodecs")

    def _compress(self, given: np.ndarray, itemsize: int) -> bytes:
        options = {} if self.level is None else {self._LEVELS[self.name][0]: self.level}
        return load_library("numcodecs").get_codec({"id": self.name, **options}).encode(given)

    def _decompress(self, packed: np.ndarray, itemsize: int, out: np.ndarray) -> None:
        try:
            if self.name in _STREAMS:
                # Not by numcodecs, which would decompress the whole of it, however much that is.
                decompressed = _STREAMS[self.name]().decompress(packed.tobytes(), out.size + 1)
                if len(decompressed) == out.size:
                    out[:] = np.frombuffer(decompressed, np.uint8)
                    return
            elif _told_nbytes(self.name, packed) == out.size:
                load_library("numcodecs").get_codec({"id": self.name}).decode(packed, out=out)
                return
        except (EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
            raise FrameError(f"frame: {self.name} could not decompress it: {error}") from None
        raise FrameError(f"frame: {self.name} made other than {out.size} bytes of it")


def _told_nbytes(name: str, packed: np.ndarray) -> int:
    """What the compressed bytes say of their decompressed size; -1 where they do not."""
    head = packed[:18].tobytes()
    if name == "lz4":
        return int.from_bytes(head[:4], "little") if len(head) >= 4 else -1
    if len(head) < 6 or head[4] < 0x20:  # magic, then a byte of flags: neither a size nor a single segment
        return -1
    start = 5 + (not head[4] & 0x20) + (0, 1, 2, 4)[head[4] & 3]
    width = 1 << (head[4] >> 6)
    return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)
