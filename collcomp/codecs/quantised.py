"""Block quantisation: small integers with one scale a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from collcomp.codecs.blocks import RoundedBlockCodec
from collcomp.codecs.checks import check_flag

__all__ = ["Int2", "Int4", "Int8"]


@dataclass(frozen=True)
class _Quantiser(RoundedBlockCodec):
    """Levels at equal distances: multiples of the scale, or counted from the block's least element."""

    later_fields: ClassVar[tuple[str, ...]] = ("asymmetric",)
    on_devices: ClassVar[bool] = True

    asymmetric: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("asymmetric", self.asymmetric)

    @cached_property
    def _scale_count(self) -> int:
        return 2 if self.asymmetric else 1

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """Half a step, a whole one where rounding is stochastic."""
        bits = 8 // self._codes_per_byte
        half = 1 / (2**bits - 1) + 2.0**-22 if self.asymmetric else 0.5 / (2 ** (bits - 1) - 1)
        return peak * (half * (1 if self.rounding == "nearest" else 2) * (1 + 2.0**-13))


@dataclass(frozen=True)
class Int8(_Quantiser):
    """Integers -127 ... 127 with one float32 scale a block.

    With m the largest magnitude of an element's block, its error is at most ``m / 254`` to nearest and ``m / 127``
    stochastically (times ``1 + 2**-13``, for the rounding of the arithmetic itself). Stochastic rounding is
    unbiased, to 2**-13 of a step.
    Blocks with a NaN, an infinity, or an m of at least 2**127 or below 2**-119 (but not 0) travel as they are.
    -0.0 may become 0.0.

    Asymmetric, there are 256 levels from the block's least element to its largest, d apart. The error is at most
    ``d / 510`` to nearest, twice that stochastically (times ``1 + 2**-13``, plus ``m * 2**-22``). Zero may be no level.
    A block whose d is at least 2**127 or below 2**-119 (but not 0) travels as it is too.

    Parameters
    ----------
    block : int
        Elements that share a scale; even, at least 16.
    rounding : {"nearest", "stochastic"}
        How values between two levels are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.
    asymmetric : bool
        An offset a block besides the scale: better where a block's elements have one sign.

    Examples
    --------
    >>> Int8(block=128, rounding="stochastic").spec
    'int8:block=128,rounding=stochastic'
    """

    codec_id: ClassVar[str] = "int8"
    number: ClassVar[int] = 4
    summary: ClassVar[str] = "8-bit integers with a scale a block, error <= 1/254 of the block's largest magnitude"
    _codes_per_byte: ClassVar[int] = 1


@dataclass(frozen=True)
class Int4(_Quantiser):
    """Integers -7 ... 7, two a byte, with one float32 scale a block.

    With m the largest magnitude of an element's block, its error is at most ``m / 14`` to nearest and ``m / 7``
    stochastically (times ``1 + 2**-13``, for the rounding of the arithmetic itself). Stochastic rounding is
    unbiased, to 2**-14 of a step.
    Blocks with a NaN, an infinity, or an m of at least 2**127 or below 2**-119 (but not 0) travel as they are.
    -0.0 may become 0.0.

    Asymmetric, there are 16 levels from the block's least element to its largest, d apart. The error is at most
    ``d / 30`` to nearest, twice that stochastically (times ``1 + 2**-13``, plus ``m * 2**-22``). Zero may be no level.
    A block whose d is at least 2**127 or below 2**-119 (but not 0) travels as it is too.

    Parameters
    ----------
    block : int
        Elements that share a scale; even, at least 16.
    rounding : {"nearest", "stochastic"}
        How values between two levels are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.
    asymmetric : bool
        An offset a block besides the scale: better where a block's elements have one sign.

    Examples
    --------
    >>> Int4(feedback=True).spec
    'int4:feedback'
    """

    codec_id: ClassVar[str] = "int4"
    number: ClassVar[int] = 5
    summary: ClassVar[str] = "4-bit integers with a scale a block, error <= 1/14 of the block's largest magnitude"
    _codes_per_byte: ClassVar[int] = 2


@dataclass(frozen=True)
class Int2(_Quantiser):
    """-1, 0 or 1, four a byte, with one float32 scale a block.

    With m the largest magnitude of an element's block, its error is at most ``m / 2`` to nearest and ``m``
    stochastically (times ``1 + 2**-13``, for the rounding of the arithmetic itself). Stochastic rounding is
    unbiased, to 2**-14 of a step.
    Blocks with a NaN, an infinity, or an m of at least 2**127 or below 2**-119 (but not 0) travel as they are.
    -0.0 may become 0.0.

    Three levels instead of four, so that zero stays zero: with levels at -1.5, -0.5, 0.5 and 1.5, all zeros beside one
    large element would become a third of it. Where few elements are near zero, `asymmetric` makes use of all four.
    Stochastic rounding to these levels is TernGrad's.

    Asymmetric, there are 4 levels from the block's least element to its largest, d apart. The error is at most
    ``d / 6`` to nearest, twice that stochastically (times ``1 + 2**-13``, plus ``m * 2**-22``). Zero may be no level.
    A block whose d is at least 2**127 or below 2**-119 (but not 0) travels as it is too.

    Parameters
    ----------
    block : int
        Elements that share a scale; a multiple of 4, at least 16.
    rounding : {"nearest", "stochastic"}
        How values between two levels are rounded.
    seed : int
        Of stochastic rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key.
    asymmetric : bool
        An offset a block besides the scale: better where a block's elements have one sign.

    Examples
    --------
    >>> Int2(rounding="stochastic").spec
    'int2:rounding=stochastic'

    Source: Wen et al., "TernGrad: ternary gradients to reduce communication in distributed deep learning", NIPS 2017.
    """

    codec_id: ClassVar[str] = "int2"
    number: ClassVar[int] = 11
    summary: ClassVar[str] = "2-bit integers with a scale a block, error <= 1/2 of the block's largest magnitude"
    _codes_per_byte: ClassVar[int] = 4
