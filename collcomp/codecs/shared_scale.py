"""Integers on a scale that all ranks agree on: they are added as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.codecs.checks import check_flag
from collcomp.errors import FrameError
from collcomp.frame import ALIGNMENT, Frame
from collcomp.kernels import cpu

__all__ = ["SharedInt"]

_WIDTHS: dict[int, np.dtype] = {8: np.dtype(np.int8), 16: np.dtype(np.int16), 32: np.dtype(np.int32)}
_SMALLEST = 2.0**-95
_LARGEST = 2.0**127
#: Keeps the largest element times the rounded inverse of the scale from rounding up past the last level; wide enough
#: for 32 bits, where float32 has no number just below 2**31.
_SHRINK = 1 - 2.0**-20
_RAW = 1


@dataclass(frozen=True)
class SharedInt(Codec):
    """Integers of `bits` bits on one scale for the whole message, with room for the sum over all ranks.

    In an allreduce the ranks first agree on the largest magnitude m of any element of any rank; with n ranks each
    encodes to at most ``L = (2**(bits - 1) - 1) // n`` levels on either side of zero, and the codes are summed as
    integers: exactly, in any order, without another rounding. The error of the sum is at most ``n * m / (2 L)`` (times
    ``1 + 2**-18``), and what the arithmetic itself rounds off, ``n * m * 2**-21`` of float32. In a frame by itself n is
    1.

    One scale for all fits messages whose elements are of similar size; elements far below ``m / L`` become zero (use
    `feedback`, or a block quantiser). A message with a NaN, an infinity, or an m of at least 2**127 or below
    2**-95 (but not 0) travels as it is. -0.0 may become 0.0.

    Parameters
    ----------
    bits : {8, 16, 32}
        Width of the sums.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> SharedInt(bits=16).spec
    'shared_int:bits=16'

    Notes
    -----
    Source: the integer allreduce of Mishchenko et al., "IntSGD: Adaptive floatless compression of stochastic
    gradients", ICLR 2022, and of switches that add (Sapio et al., "Scaling distributed machine learning with in-network
    aggregation", NSDI 2021).
    """

    codec_id: ClassVar[str] = "shared_int"
    number: ClassVar[int] = 22
    summary: ClassVar[str] = "integers on one agreed scale, summed exactly without decoding"
    summable: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    bits: int = 8
    feedback: bool = False

    def __post_init__(self) -> None:
        if self.bits not in _WIDTHS or isinstance(self.bits, bool):
            raise ValueError(f"bits: expected one of {', '.join(map(str, _WIDTHS))}, got {self.bits!r}")
        check_flag("feedback", self.feedback)

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """Half a step, and what the arithmetic rounds off."""
        return peak * ((1 + 2.0**-18) / (2 * self._levels(size)) + 2.0**-21)

    def most_ranks(self) -> int:
        """Each rank needs one level on either side of zero."""
        return 2 ** (self.bits - 1) - 1

    # ------------------------------------------------------------------ frames: the scale, then the codes

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The scale and the codes, or the values as they are."""
        return ALIGNMENT + count * max(dtype.itemsize, self._code_dtype.itemsize) if count else 0

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        if not src.size:
            return 0, 0
        peak = cpu.load("shared_scale").largest(src)
        if not _has_scale(peak):
            return self._encode_raw(src, payload)
        scale, inverse = self._scale(peak, 1)
        codes = self._write_scale(payload, scale, src.size)
        cpu.load("shared_scale").encode(src, inverse, codes)
        return ALIGNMENT + codes.nbytes, 0

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        if not src.size:
            return 0, 0
        peak = cpu.load("shared_scale").add_largest(src, residual)
        if not _has_scale(peak):
            outcome = self._encode_raw(residual, payload)
            residual[:] = 0
            return outcome
        scale, inverse = self._scale(peak, 1)
        codes = self._write_scale(payload, scale, src.size)
        cpu.load("shared_scale").encode_feedback(residual, inverse, scale, codes)
        return ALIGNMENT + codes.nbytes, 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        if frame.extra == _RAW:
            dst[...] = frame.values(dst.dtype)
        elif dst.size:
            cpu.load("shared_scale").decode(*self._checked_sections(frame), dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        if frame.extra == _RAW:
            acc += frame.values(acc.dtype)
        elif acc.size:
            cpu.load("shared_scale").decode_add(*self._checked_sections(frame), acc)

    def _encode_raw(self, src: np.ndarray, payload: np.ndarray) -> tuple[int, int]:
        payload[: src.nbytes] = src.view(np.uint8)
        return src.nbytes, _RAW

    def _write_scale(self, payload: np.ndarray, scale: float, count: int) -> np.ndarray:
        """Write the scale's section; the room for the codes."""
        payload[:ALIGNMENT] = 0
        payload[:8].view(np.float64)[0] = scale
        return payload[ALIGNMENT : ALIGNMENT + count * self._code_dtype.itemsize].view(self._code_dtype)

    def _checked_sections(self, frame: Frame) -> tuple[np.ndarray, float]:
        expected = ALIGNMENT + frame.count * self._code_dtype.itemsize if frame.count else 0
        if frame.extra or frame.payload.size != expected:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {frame.count} elements take {expected}")
        return frame.payload[ALIGNMENT:].view(self._code_dtype), float(frame.payload[:8].view(np.float64)[0])

    # ------------------------------------------------------------------ sums

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
        """The largest magnitude, then the codes."""
        if not src.size:
            return
        kernels = cpu.load("shared_scale")
        values = src if residual is None else residual
        peak = np.array([kernels.largest(src) if residual is None else kernels.add_largest(src, residual)], np.float64)
        yield peak, "max"
        if not _has_scale(peak[0]):
            total = values.copy()
            if residual is not None:
                residual[:] = 0
            yield total, "sum"
            dst[...] = total
            return
        scale, inverse = self._scale(peak[0], size)
        codes = np.empty(src.size, self._code_dtype)
        if residual is None:
            kernels.encode(values, inverse, codes)
        else:
            kernels.encode_feedback(values, inverse, scale, codes)
        yield codes, "sum"
        kernels.decode(codes, scale, dst)

    def _scale(self, peak: float, size: int) -> tuple[float, float]:
        """Scale and its inverse."""
        scale = float(peak) / (self._levels(size) * _SHRINK)
        return scale, 1 / scale if scale else 0.0

    def _levels(self, size: int) -> int:
        return self.most_ranks() // size

    @property
    def _code_dtype(self) -> np.dtype:
        return _WIDTHS[self.bits]


def _has_scale(peak: float) -> bool:
    return peak == 0 or (math.isfinite(peak) and _SMALLEST <= peak < _LARGEST)
