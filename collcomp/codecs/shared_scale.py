"""Integers on a scale that all ranks agree on: they are added as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.codecs.checks import check_flag
from collcomp.devices import counters, empty, on_device, read, zeros
from collcomp.errors import FrameError
from collcomp.frame import ALIGNMENT, Frame
from collcomp.kernels import kernels_for

__all__ = ["SharedInt"]

_WIDTHS: dict[int, np.dtype] = {8: np.dtype(np.int8), 16: np.dtype(np.int16), 32: np.dtype(np.int32)}
#: The least magnitude above 0 that has a scale, and the least above that which has none.
_LIMITS = (2.0**-95, 2.0**127)
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
    on_devices: ClassVar[bool] = True

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
        return self._write(src, None, payload)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        return self._write(src, residual, payload)

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        if frame.extra == _RAW:
            dst[...] = frame.values(dst.dtype)
        elif dst.size:
            scale, codes = self._checked_sections(frame)
            kernels_for(dst, "shared_scale").decode(codes, _step(scale, dst.dtype), dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        if frame.extra == _RAW:
            acc += frame.values(acc.dtype)
        elif acc.size:
            scale, codes = self._checked_sections(frame)
            kernels_for(acc, "shared_scale").decode_add(codes, _step(scale, acc.dtype), acc)

    def _write(self, src: np.ndarray, residual: np.ndarray | None, payload: np.ndarray) -> tuple[int, int]:
        if not src.size:
            return 0, 0
        values = src if residual is None else residual
        peak = _peak(src, residual)
        payload[:ALIGNMENT] = 0
        scale, codes = self._sections(payload, src.size)
        if self._quantise(peak, 1, values, residual is not None, scale, codes):
            return ALIGNMENT + codes.nbytes, 0
        payload[: src.nbytes] = values.view(np.uint8)
        if residual is not None:
            residual[:] = 0
        return src.nbytes, _RAW

    def _sections(self, payload: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The scale, and the codes."""
        codes = payload[ALIGNMENT : ALIGNMENT + count * self._code_dtype.itemsize]
        return payload[:8].view(np.float64), codes.view(self._code_dtype)

    def _checked_sections(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        expected = ALIGNMENT + frame.count * self._code_dtype.itemsize if frame.count else 0
        if frame.extra or frame.payload.size != expected:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {frame.count} elements take {expected}")
        return self._sections(frame.payload, frame.count)

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
        values = src if residual is None else residual
        peak = _peak(src, residual)
        yield peak, "max"
        scale, codes = empty(1, np.dtype(np.float64), src), empty(src.size, self._code_dtype, src)
        if not self._quantise(peak, size, values, residual is not None, scale, codes):
            total = values.copy()
            if residual is not None:
                residual[:] = 0
            yield total, "sum"
            dst[...] = total
            return
        yield codes, "sum"
        kernels_for(dst, "shared_scale").decode(codes, _step(scale, dst.dtype), dst)

    def _quantise(
        self, peak: np.ndarray, size: int, values: np.ndarray, keep: bool, scale: np.ndarray, codes: np.ndarray
    ) -> bool:
        """Write scale and codes, and have `values` `keep` what is rounded off; False where there is no scale.

        On a device it waits for that, once all has been begun.
        """
        kernels, divisor = kernels_for(values, "shared_scale"), self._levels(size) * _SHRINK
        step: Any
        inverse: Any
        if on_device(values):
            step, inverse = empty(1, values.dtype, values), empty(1, values.dtype, values)
            kernels.fit(peak, divisor, _LIMITS, scale, step, inverse, counters())
        else:
            if not _has_scale(peak[0]):
                return False
            step = scale[0] = float(peak[0]) / divisor
            inverse = 1 / step if step else 0.0
        if keep:
            kernels.encode_feedback(values, inverse, step, codes)
        else:
            kernels.encode(values, inverse, codes)
        return not (on_device(values) and read()[0])

    def _levels(self, size: int) -> int:
        return self.most_ranks() // size

    @property
    def _code_dtype(self) -> np.dtype:
        return _WIDTHS[self.bits]


def _peak(src: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    """The largest magnitude (float64, of one element) of `src`, or of `residual` once `src` was added to it."""
    kernels = kernels_for(src, "shared_scale")
    arrays, name = ((src,), "largest") if residual is None else ((src, residual), "add_largest")
    if not on_device(src):
        return np.array([getattr(kernels, name)(*arrays)], np.float64)
    bits = zeros(1, np.dtype(f"i{src.itemsize}"), src)
    getattr(kernels, name)(*arrays, bits)
    return bits.view(src.dtype).astype(np.float64)


def _step(scale: np.ndarray, dtype: np.dtype) -> Any:
    """The scale as kernels take it."""
    return scale.astype(dtype) if on_device(scale) else float(scale[0])


def _has_scale(peak: float) -> bool:
    return peak == 0 or (math.isfinite(peak) and _LIMITS[0] <= peak < _LIMITS[1])
