"""Casts to 16-bit floats: half the bytes, no scales, and to nearest safe for MAX and MIN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.codecs.checks import check_choice, check_flag, check_integer
from collcomp.codecs.streams import random_key
from collcomp.errors import FrameError
from collcomp.frame import Frame
from collcomp.kernels import kernels_for

__all__ = ["BF16", "FP16"]


@dataclass(frozen=True)
class _Cast(Codec):
    """One 16-bit float an element, rounded to nearest, ties to even, or stochastically."""

    later_fields: ClassVar[tuple[str, ...]] = ("rounding", "seed")
    on_devices: ClassVar[bool] = True
    #: Tells the kernels the format.
    _code_dtype: ClassVar[np.dtype]
    #: Largest errors to nearest: relative, and of subnormals.
    _errors: ClassVar[tuple[float, float]]

    rounding: str = "nearest"
    seed: int = 0
    feedback: bool = False

    def __post_init__(self) -> None:
        check_choice("rounding", self.rounding, ("nearest", "stochastic"))
        check_integer("seed", self.seed, 0)
        check_flag("feedback", self.feedback)

    @property
    def monotone(self) -> bool:
        """Rounding to nearest keeps the order of any two elements."""
        return self.rounding == "nearest"

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """Half a unit in the last place, a whole one where rounding is stochastic."""
        relative, absolute = self._errors
        return np.maximum(relative * peak, absolute) * (1 if self.rounding == "nearest" else 2)

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Exactly two bytes an element."""
        return 2 * count

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        kernels_for(src, "casts").encode(src, self._codes(payload, src.size), self._key(stream))
        return 2 * src.size, 0

    def _encode_keep(self, src: np.ndarray, kept: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        kernels_for(src, "casts").encode_keep(src, kept, self._codes(payload, src.size), self._key(stream))
        return 2 * src.size, 0

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        kernels_for(src, "casts").encode_feedback(src, residual, self._codes(payload, src.size), self._key(stream))
        return 2 * src.size, 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        kernels_for(dst, "casts").decode(self._checked_codes(frame), dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        kernels_for(acc, "casts").decode_add(self._checked_codes(frame), acc)

    def _key(self, stream: int) -> int | None:
        return None if self.rounding == "nearest" else random_key(self.seed, stream)

    def _codes(self, payload: np.ndarray, count: int) -> np.ndarray:
        return payload[: 2 * count].view(self._code_dtype)

    def _checked_codes(self, frame: Frame) -> np.ndarray:
        if frame.payload.size != 2 * frame.count or frame.extra:
            raise FrameError(f"frame: {frame.payload.size} bytes are not {frame.count} 16-bit floats")
        return self._codes(frame.payload, frame.count)


@dataclass(frozen=True)
class FP16(_Cast):
    """IEEE float16: 11 significant bits, magnitudes from 6e-8 to 65504.

    The error of an element is at most 2**-11 of its magnitude, or 2**-25 where that is more; magnitudes of 65520
    and above become infinite. Infinity, NaN and -0.0 stay what they are.
    Stochastic rounding is unbiased, to 2**-13 of a step, and its error at most twice that; magnitudes of 65536 and
    above become infinite, those just below may.

    Parameters
    ----------
    rounding : {"nearest", "stochastic"}
        How values between two numbers of the format are rounded; only to nearest keeps order, as MAX and MIN need.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> FP16().spec
    'fp16'
    """

    codec_id: ClassVar[str] = "fp16"
    number: ClassVar[int] = 2
    _errors: ClassVar[tuple[float, float]] = (2.0**-11, 2.0**-25)
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.uint16)
    summary: ClassVar[str] = "IEEE half precision, 2 bytes an element, error <= 2**-11 of the element"


@dataclass(frozen=True)
class BF16(_Cast):
    """bfloat16: 8 significant bits, the exponents of float32.

    The error of an element is at most 2**-8 of its magnitude, 2**-9 unless it lies just above a power of two, or
    2**-134 where that is more. Infinity, NaN and -0.0 stay what they are; finite magnitudes from 3.396e38 on become
    infinite.
    Stochastic rounding is unbiased, to 2**-16 of a step, and its error at most twice that; finite magnitudes from
    3.39e38 on may become infinite.

    Parameters
    ----------
    rounding : {"nearest", "stochastic"}
        How values between two numbers of the format are rounded; only to nearest keeps order, as MAX and MIN need.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> BF16(feedback=True).spec
    'bf16:feedback'
    """

    codec_id: ClassVar[str] = "bf16"
    number: ClassVar[int] = 3
    _errors: ClassVar[tuple[float, float]] = (2.0**-8, 2.0**-134)
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.int16)
    summary: ClassVar[str] = "bfloat16, 2 bytes an element, error <= 2**-8 of the element"
