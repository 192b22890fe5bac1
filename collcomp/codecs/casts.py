"""Casts to 16-bit floats: half the bytes, no scales, safe for MAX and MIN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.codecs.checks import check_flag
from collcomp.errors import FrameError
from collcomp.frame import Frame
from collcomp.kernels import cpu

__all__ = ["BF16", "FP16"]


@dataclass(frozen=True)
class _Cast(Codec):
    """One 16-bit float an element, rounded to nearest, ties to even."""

    monotone: ClassVar[bool] = True
    #: Tells the kernels the format.
    _code_dtype: ClassVar[np.dtype]

    feedback: bool = False

    def __post_init__(self) -> None:
        check_flag("feedback", self.feedback)

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Exactly two bytes an element."""
        return 2 * count

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        cpu.load("casts").encode(src, self._codes(payload, src.size))
        return 2 * src.size, 0

    def _encode_keep(self, src: np.ndarray, kept: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        cpu.load("casts").encode_keep(src, kept, self._codes(payload, src.size))
        return 2 * src.size, 0

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        cpu.load("casts").encode_feedback(src, residual, self._codes(payload, src.size))
        return 2 * src.size, 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        cpu.load("casts").decode(self._checked_codes(frame), dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        cpu.load("casts").decode_add(self._checked_codes(frame), acc)

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
    and above become infinite. Infinity and NaN stay what they are.

    Parameters
    ----------
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> FP16().spec
    'fp16'
    """

    codec_id: ClassVar[str] = "fp16"
    number: ClassVar[int] = 2
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.uint16)
    summary: ClassVar[str] = "IEEE half precision, 2 bytes an element, error <= 2**-11 of the element"


@dataclass(frozen=True)
class BF16(_Cast):
    """bfloat16: 8 significant bits, the exponents of float32.

    The error of an element is at most 2**-8 of its magnitude, 2**-9 unless it lies just above a power of two, or
    2**-134 where that is more. Infinity and NaN stay what they are; finite magnitudes from 3.396e38 on become infinite.

    Parameters
    ----------
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> BF16(feedback=True).spec
    'bf16:feedback'
    """

    codec_id: ClassVar[str] = "bf16"
    number: ClassVar[int] = 3
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.int16)
    summary: ClassVar[str] = "bfloat16, 2 bytes an element, error <= 2**-8 of the element"
