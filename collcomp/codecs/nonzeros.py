"""Lossless frames of the elements that are not zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs import selection
from collcomp.codecs.base import Codec
from collcomp.devices import counters, empty, like, on_device, zeros
from collcomp.frame import HEADER_NBYTES, Envelope, Frame
from collcomp.kernels import cpu, cuda, kernels_for

__all__ = ["Nonzeros"]

#: Layout of a payload that is all values, beside those of `selection`.
_DENSE = 3 << 32


@dataclass(frozen=True)
class Nonzeros(Codec):
    """The elements that are not zero with their indices, or all elements where that takes no more bytes.

    For messages that are mostly zero: gradients of embeddings, masked tensors, sums of sparse frames. Every bit
    arrives; -0.0 is no zero. Indices travel as those of `topk` do.

    Examples
    --------
    >>> Nonzeros().spec
    'nonzeros'
    """

    codec_id: ClassVar[str] = "nonzeros"
    number: ClassVar[int] = 34
    summary: ClassVar[str] = "the elements that are not zero, bit by bit, for messages that are mostly zero"
    lossless: ClassVar[bool] = True
    on_devices: ClassVar[bool] = True

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The elements themselves."""
        return count * dtype.itemsize

    def encode_selection(
        self, indices: np.ndarray, values: np.ndarray, count: int, dst: np.ndarray, envelope: Envelope
    ) -> int:
        """Encode `count` elements that are zero but for `values` at ascending `indices`; otherwise as `encode`."""
        payload = dst[HEADER_NBYTES:]
        chosen = selection.plan(indices, values.itemsize, count)
        if chosen.nbytes < count * values.itemsize:
            selection.values_in(payload, values.size, values.dtype)[:] = values
            nbytes, extra = selection.write(payload, indices, values.itemsize, chosen)
        else:
            dense = selection.values_in(payload, count, values.dtype)
            kernels_for(dense, "sparse").scatter(indices, values, dense)
            nbytes, extra = dense.nbytes, _DENSE
        self.write_header(dst, envelope, count, nbytes, extra)
        return HEADER_NBYTES + nbytes

    def selection(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        if frame.extra == _DENSE:
            return like(np.arange(frame.count, dtype=np.uint32), frame.payload), frame.values(frame.dtype)
        return selection.read(frame, frame.dtype, 0, frame.count)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        found = _collected(_bits(src)) if src.size <= selection.MOST_ELEMENTS else None
        if found is not None:
            indices, values = found
            chosen = selection.plan(indices, src.itemsize, src.size)
            if chosen.nbytes < src.nbytes:
                selection.values_in(payload, values.size, values.dtype)[:] = values
                return selection.write(payload, indices, src.itemsize, chosen)
        payload[: src.nbytes] = src.view(np.uint8)
        return src.nbytes, _DENSE

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        if frame.extra == _DENSE:
            dst[...] = frame.values(frame.dtype)
        else:
            bits = _bits(dst)
            kernels_for(bits, "sparse").scatter(*selection.read(frame, bits.dtype, 0, frame.count), bits)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        if frame.extra == _DENSE:
            np.add(acc, frame.values(frame.dtype), out=acc, casting="same_kind")
        elif frame.dtype == acc.dtype and acc.dtype.kind == "f":
            kernels_for(acc, "sparse").scatter_add(*selection.read(frame, acc.dtype, 0, frame.count), acc)
        else:
            super()._decode_add(frame, acc)


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.itemsize}")


def _collected(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The integers that are not 0 with their indices; None where all are, or there are none at all."""
    if on_device(bits):
        return _collected_on_device(bits) if bits.size else None
    kernels = cpu.load("sparse")
    k = kernels.count_nonzeros(bits)
    if k == bits.size:
        return None
    found = np.empty(k, np.uint32), np.empty(k, bits.dtype)
    kernels.collect_nonzeros(bits, *found)
    return found


def _collected_on_device(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    kernels = cuda.load("sparse")
    scratch = zeros(kernels.scratch_size(bits.size), np.dtype(np.int64), bits)
    kernels.count_nonzeros(bits, scratch, counters())
    k = selection.counted(bits)
    if k == bits.size:
        return None
    found = empty(k, np.dtype(np.uint32), bits), empty(k, bits.dtype, bits)
    if k:
        kernels.collect_nonzeros(bits, *found, scratch)
    return found
