"""Small floats: 8 or 4 bits an element, and a power of two as scale of each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from collcomp.codecs.blocks import RoundedBlockCodec

__all__ = ["FP8E4M3", "FP8E5M2", "MXFP4", "MXFP8"]


@dataclass(frozen=True)
class _ScaledFloats(RoundedBlockCodec):
    """Blocks of small floats; the last block is filled up with zeros to a multiple of 32 elements."""

    on_devices: ClassVar[bool] = True
    _kernels: ClassVar[str] = "microscaled"
    _group: ClassVar[int] = 512
    #: Largest error to nearest and stochastically, by the largest magnitude of the block.
    _errors: ClassVar[tuple[float, float]]

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """That of the largest element of the block."""
        return peak * self._errors[self.rounding == "stochastic"]

    @property
    def _multiple(self) -> int:
        return 32

    def _how(self, count: int) -> tuple[Any, ...]:
        return ()


@dataclass(frozen=True)
class FP8E4M3(_ScaledFloats):
    """OCP 8-bit floats e4m3 (4 significant bits), with a power of two as scale of each block.

    The scale is the smallest power of two (of 2**-126 and more) with which no element of the block exceeds 448, the
    largest e4m3 number: nothing saturates, and values of any magnitude fit. With m the largest magnitude of its
    block, the error of an element x is at most the largest of ``abs(x) / 16``, ``m * 2**-17`` and 2**-136 to nearest
    (ties to even), and twice that stochastically. Stochastic rounding is unbiased, to 2**-20 of a step; -0.0 stays
    what it is.
    Blocks with a NaN, an infinity, or an m of 2**127 or more travel as they are.

    Parameters
    ----------
    block : int
        Elements that share a scale; a multiple of 32.
    rounding : {"nearest", "stochastic"}
        How values between two numbers of the format are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> FP8E4M3(rounding="stochastic").spec
    'fp8_e4m3:rounding=stochastic'

    Source: Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433; OCP 8-bit Floating Point
    Specification (OFP8) 1.0.
    """

    codec_id: ClassVar[str] = "fp8_e4m3"
    number: ClassVar[int] = 7
    summary: ClassVar[str] = "8-bit floats (e4m3) with a scale a block, error <= 1/16 of the element"
    _errors: ClassVar[tuple[float, float]] = (1 / 16, 1 / 8)
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    _codes_per_byte: ClassVar[int] = 1


@dataclass(frozen=True)
class FP8E5M2(_ScaledFloats):
    """OCP 8-bit floats e5m2 (3 significant bits, a wider range), with a power of two as scale of each block.

    The scale is the smallest power of two (of 2**-126 and more) with which no element of the block exceeds 57344, the
    largest e5m2 number: nothing saturates, and values of any magnitude fit. With m the largest magnitude of its
    block, the error of an element x is at most the largest of ``abs(x) / 8``, ``m * 2**-31`` and 2**-143 to nearest
    (ties to even), and twice that stochastically. Stochastic rounding is unbiased, to 2**-20 of a step; -0.0 stays
    what it is.
    Blocks with a NaN, an infinity, or an m of 2**127 or more travel as they are.

    Parameters
    ----------
    block : int
        Elements that share a scale; a multiple of 32.
    rounding : {"nearest", "stochastic"}
        How values between two numbers of the format are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> FP8E5M2(block=1024).spec
    'fp8_e5m2:block=1024'

    Source: Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433; OCP 8-bit Floating Point
    Specification (OFP8) 1.0.
    """

    codec_id: ClassVar[str] = "fp8_e5m2"
    number: ClassVar[int] = 8
    summary: ClassVar[str] = "8-bit floats (e5m2) with a scale a block, error <= 1/8 of the element, range 2**32"
    _errors: ClassVar[tuple[float, float]] = (1 / 8, 1 / 4)
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.int8)
    _codes_per_byte: ClassVar[int] = 1


@dataclass(frozen=True)
class _Microscaled(_ScaledFloats):
    """OCP Microscaling: blocks of 32, a byte for the exponent of each block's scale."""

    _scale_dtype: ClassVar[np.dtype] = np.dtype(np.uint8)

    block: ClassVar[int] = 32  # type: ignore[misc]


@dataclass(frozen=True)
class MXFP8(_Microscaled):
    """OCP Microscaling MXFP8: e4m3 floats in blocks of 32 with a power of two as scale (one byte).

    With m the largest magnitude of a block, its scale is ``2 ** (floor(log2(m)) - 8)``, at least 2**-126; elements
    beyond 448 times that saturate. The error of an element x is at most the largest of ``abs(x) / 16``, or
    ``abs(x) / 8`` where it saturates, ``m * 2**-18`` and 2**-136.
    Stochastic rounding takes twice the scale where something would saturate: so it is unbiased, to 2**-20 of a step,
    and the error is at most the largest of ``abs(x) / 8``, ``m * 2**-16`` and 2**-135. -0.0 stays what it is.
    Blocks with a NaN, an infinity, or an m of 2**127 or more travel as they are, beside the scale that stands for
    NaN: in the format itself all their elements would be NaN.

    Parameters
    ----------
    rounding : {"nearest", "stochastic"}
        How values between two numbers of the format are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> MXFP8(feedback=True).spec
    'mxfp8:feedback'

    Source: OCP Microscaling Formats (MX) Specification 1.0; Rouhani et al., arXiv 2310.10537.
    """

    codec_id: ClassVar[str] = "mxfp8"
    number: ClassVar[int] = 9
    summary: ClassVar[str] = "OCP Microscaling, 8-bit floats (e4m3) in blocks of 32, error <= 1/8 of the element"
    _errors: ClassVar[tuple[float, float]] = (1 / 8, 1 / 8)
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    _codes_per_byte: ClassVar[int] = 1


@dataclass(frozen=True)
class MXFP4(_Microscaled):
    """OCP Microscaling MXFP4: e2m1 floats, two a byte, in blocks of 32 with a power of two as scale (one byte).

    With m the largest magnitude of a block, its scale is ``2 ** (floor(log2(m)) - 2)``, at least 2**-126; elements
    beyond 6 times that saturate. The error of an element x is at most the largest of ``abs(x) / 4``, ``m / 16`` and
    2**-128.
    Stochastic rounding takes twice the scale where something would saturate: so it is unbiased, to 2**-20 of a step,
    and the error is at most the largest of ``abs(x) / 2``, ``m / 6`` and 2**-127. -0.0 stays what it is.
    Blocks with a NaN, an infinity, or an m of 2**127 or more travel as they are, beside the scale that stands for
    NaN: in the format itself all their elements would be NaN.

    Parameters
    ----------
    rounding : {"nearest", "stochastic"}
        How values between two numbers of the format are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.

    Examples
    --------
    >>> MXFP4(rounding="stochastic", seed=1).spec
    'mxfp4:rounding=stochastic,seed=1'

    Source: OCP Microscaling Formats (MX) Specification 1.0; Rouhani et al., arXiv 2310.10537.
    """

    codec_id: ClassVar[str] = "mxfp4"
    number: ClassVar[int] = 10
    summary: ClassVar[str] = "OCP Microscaling, 4-bit floats (e2m1) in blocks of 32, error <= 1/4 of the element"
    _errors: ClassVar[tuple[float, float]] = (1 / 4, 1 / 2)
    _code_dtype: ClassVar[np.dtype] = np.dtype(np.int8)
    _codes_per_byte: ClassVar[int] = 2
