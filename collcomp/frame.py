"""The wire header: 64 bytes in front of every encoded payload.

Layout, little endian::

    offset  size  field
         0     4  magic ``CCF1``
         4     2  codec number
         6     1  dtype code of the message
         7     1  zero
         8     4  digest of the codec's configuration
        12     4  sequence number of the operation
        16     8  elements in this frame
        24     8  payload bytes that follow the header
        32     8  a number of the codec's own (raw blocks, ...)
        40     8  elements in the whole message
        48    12  zero
        60     4  CRC-32 of the 60 bytes before

The checksum covers the header only: every size that a decoder relies on is in it. Payloads travel over
transports that already guard them (TCP, InfiniBand, shared memory), and each decoder is safe on any payload.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from collcomp.devices import is_capturing, like
from collcomp.errors import FrameError

__all__ = ["ALIGNMENT", "DTYPES", "HEADER_NBYTES", "Envelope", "Frame", "align", "dtype_code"]

ALIGNMENT = 64
HEADER_NBYTES = 64
_MAGIC = b"CCF1"
_BODY = struct.Struct("<4sHBxIIQQQQ12x")
_CRC = struct.Struct("<I")

#: Element types that can travel, by their code on the wire.
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(kind)
    for code, kind in enumerate(
        [
            np.float32, np.float64, np.float16, ml_dtypes.bfloat16,
            np.int8, np.int16, np.int32, np.int64,
            np.uint8, np.uint16, np.uint32, np.uint64, np.bool_,
        ],
        start=1,
    )
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def align(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of sections (64 bytes)."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def dtype_code(dtype: np.dtype) -> int:
    """The wire code of `dtype`; `TypeError` when it cannot travel in a frame."""
    code = _CODES.get(dtype)
    if code is None:
        raise TypeError(f"dtype: {dtype} cannot travel in a frame; known: {', '.join(map(str, _CODES))}")
    return code


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a frame says about the message that it is a part of.

    Parameters
    ----------
    dtype : numpy.dtype
        Element type of the user's buffers (the encoded values may be wider).
    total : int
        Elements of the whole message, so that ranks with other counts are found out.
    sequence : int
        Number of the operation on its communicator, modulo 2**32.
    """

    dtype: np.dtype
    total: int
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """A checked header and the payload behind it (a `uint8` view, not a copy)."""

    codec: int
    dtype: np.dtype
    config: int
    sequence: int
    count: int
    extra: int
    total: int
    payload: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, header included."""
        return HEADER_NBYTES + self.payload.size

    def check_nbytes(self, expected: int) -> None:
        """`FrameError` unless the payload has exactly `expected` bytes."""
        if self.payload.size != expected:
            raise FrameError(f"frame: {self.payload.size} payload bytes, expected {expected}")

    def values(self, dtype: np.dtype) -> np.ndarray:
        """The payload as its `count` elements of `dtype`, where they lie; `FrameError` when it is not just these."""
        self.check_nbytes(self.count * dtype.itemsize)
        return self.payload.view(dtype)

    @classmethod
    def read(cls, buffer: np.ndarray, payload: np.ndarray | None = None) -> Frame:
        """Check the header at the start of `buffer` (`uint8`, exactly what arrived).

        Parameters
        ----------
        buffer : ndarray of uint8
            Header and payload, or the header alone where `payload` is given.
        payload : ndarray of uint8, optional
            The payload, where it arrived apart from its header.

        Raises
        ------
        FrameError
            When anything is wrong; nothing is allocated from the header's numbers.
        """
        if buffer.size < HEADER_NBYTES:
            raise FrameError(f"frame: {buffer.size} bytes arrived, a header alone has {HEADER_NBYTES}")
        head = buffer[:HEADER_NBYTES].tobytes()
        magic, codec, dtype, config, sequence, count, nbytes, extra, total = _BODY.unpack_from(head)
        if magic != _MAGIC:
            raise FrameError(f"frame: magic {magic!r} is not {_MAGIC!r}: the sender did not send a frame")
        if _CRC.unpack_from(head, HEADER_NBYTES - 4)[0] != zlib.crc32(head[: HEADER_NBYTES - 4]):
            raise FrameError("frame: the header's checksum does not match, it was damaged on the way")
        if dtype not in DTYPES:
            raise FrameError(f"frame: unknown dtype code {dtype}")
        if payload is None:
            payload = buffer[HEADER_NBYTES:]
        if nbytes != payload.size:
            raise FrameError(f"frame: the header tells of {nbytes} payload bytes, {payload.size} arrived")
        return cls(codec, DTYPES[dtype], config, sequence, count, extra, total, payload)

    @staticmethod
    def write_header(
        buffer: np.ndarray, envelope: Envelope, *, codec: int, config: int, count: int, nbytes: int, extra: int
    ) -> None:
        """Write the header of a payload of `nbytes` bytes into the first 64 bytes of `buffer`.

        Not while a graph is captured: it would be that of the capture, whenever the graph runs.
        """
        on_host = type(buffer) is np.ndarray
        if not on_host and is_capturing(buffer):
            return
        head = _BODY.pack(
            _MAGIC, codec, dtype_code(envelope.dtype), config, envelope.sequence, count, nbytes, extra, envelope.total
        )
        header = np.frombuffer(head + _CRC.pack(zlib.crc32(head)), np.uint8)
        buffer[:HEADER_NBYTES] = header if on_host else like(header, buffer)
