"""Dithering: few levels a block, rounded at random so that the mean is the value itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.bit_blocks import BitBlocks, Sections
from collcomp.codecs.checks import check_choice, check_flag, check_integer, check_number
from collcomp.codecs.streams import random_key
from collcomp.frame import Frame
from collcomp.kernels import cpu
from collcomp.kernels.cpu import PACKED

__all__ = ["QSGD", "TernGrad"]


class _Dithered(BitBlocks):
    """What the kernels have to know: `levels`, `norm`, `spacing`, `clip`, `block` and `seed`."""

    levels: int
    norm: str
    spacing: str
    clip: float
    seed: int

    @property
    def width(self) -> int:
        """Bits of a code: zero, and `levels` on both sides of it."""
        return (2 * self.levels).bit_length()

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """The largest distance of two neighbouring levels."""
        norm = math.sqrt(self.block) if self.norm == "l2" else 1.0
        gap = 1 / self.levels if self.spacing == "linear" else 0.5 if self.levels > 1 else 1.0
        return peak * (norm * gap * (1 + 2.0**-13))

    def _run(
        self, src: np.ndarray, residual: np.ndarray | None, kept: np.ndarray | None, sections: Sections, stream: int
    ) -> None:
        cpu.load("dithered").encode(
            src, residual, kept, *sections, *self._code_arguments(), self.norm == "l2", self.clip,
            random_key(self.seed, stream),
        )  # fmt: skip

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        self._unpack(cpu.load("dithered").decode, frame, dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        self._unpack(cpu.load("dithered").decode_add, frame, acc)

    def _unpack(self, kernel: Callable[..., None], frame: Frame, dst: np.ndarray) -> None:
        sections = self._checked_sections(frame)
        if dst.size:
            kernel(*sections, *self._code_arguments(), dst)

    def _code_arguments(self) -> tuple[np.ndarray, int, int, int, bool | None]:
        natural = None if self.spacing == "linear" else True
        return np.empty(PACKED, np.int32), self.block, self.levels, self.width, natural


@dataclass(frozen=True)
class QSGD(_Dithered):
    """Few levels between zero and the norm of a block, on both sides, rounded at random without bias.

    With N the norm of an element's block, levels are ``N * j / levels`` (linear spacing) or ``N * 2**-j`` for j from 0
    to ``levels - 1``, and 0 (natural spacing). An element becomes one of the two levels around it, with such
    probabilities that its mean is the element, to ``N / levels * 2**-15`` or a relative ``2**-21`` if that is more.
    Errors are below the distance of these two levels. With linear spacing and norm ``"l2"`` the expected squared error
    of n elements is at most ``min(n / levels**2, sqrt(n) / levels)`` times their squared norm.

    Blocks with a NaN, an infinity, or a norm of at least 2**127 or below 2**-119 (but not 0) travel as they are. -0.0
    becomes 0.0.

    Parameters
    ----------
    levels : int
        Levels on either side of zero, at most 127; codes take ``ceil(log2(2 * levels + 1))`` bits.
    norm : {"max", "l2"}
        The norm of a block: its largest magnitude, or its Euclidean norm, which leaves most elements at zero.
    spacing : {"linear", "natural"}
        Evenly spaced levels, or powers of two.
    block : int
        Elements that share a norm; a multiple of 256.
    seed : int
        Of the random rounding.
    feedback : bool
        Carry what was rounded off into the next call with the same key. Only with norm ``"max"``: the Euclidean norm
        is so large that errors can exceed the values that they come from, and residuals grow without bounds.

    Examples
    --------
    >>> QSGD(levels=3, spacing="natural").spec
    'qsgd:levels=3,spacing=natural'

    References
    ----------
    Alistarh, Grubic, Li, Tomioka and Vojnovic, "QSGD: Communication-efficient SGD via gradient quantization and
    encoding", NIPS 2017; Horvath, Ho, Horvath, Sahu, Canini and Richtarik, "Natural compression for distributed deep
    learning", MSML 2022.
    """

    codec_id: ClassVar[str] = "qsgd"
    number: ClassVar[int] = 13
    summary: ClassVar[str] = "few levels a block, linear or powers of two, rounded at random without bias"
    clip: ClassVar[float] = 0.0  # type: ignore[misc]

    levels: int = 15
    norm: str = "max"
    spacing: str = "linear"
    block: int = 512
    seed: int = 0
    feedback: bool = False

    def __post_init__(self) -> None:
        check_integer("levels", self.levels, 1)
        if self.levels > 127:
            raise ValueError(f"levels: expected at most 127, got {self.levels!r}")
        check_choice("norm", self.norm, ("max", "l2"))
        check_choice("spacing", self.spacing, ("linear", "natural"))
        check_integer("block", self.block, PACKED, multiple=PACKED)
        check_integer("seed", self.seed, 0)
        check_flag("feedback", self.feedback)
        if self.feedback and self.norm == "l2":
            raise ValueError("feedback: residuals would diverge with norm='l2', it takes norm='max'")


@dataclass(frozen=True)
class TernGrad(_Dithered):
    """-1, 0 or 1 times the largest magnitude of the block, at random without bias; 2 bits an element.

    An element x of a block with largest magnitude m becomes ``sign(x) * m`` with probability ``|x| / m``, else 0: its
    mean is x, to ``m * 2**-15``, its error below m. With `clip`, magnitudes above `clip` times the root mean square
    of their block are clipped to that first: m is smaller, and what was clipped is lost.

    There is no error feedback: errors are as large as the values that they come from, and residuals would be many times
    as large. Blocks with a NaN, an infinity, or an m of at least 2**127 or below 2**-119 (but not 0) travel as they
    are. -0.0 becomes 0.0.

    Parameters
    ----------
    clip : float
        Root mean squares that a magnitude may reach, 2.5 in the paper; 0 clips nothing.
    block : int
        Elements that share a scale; a multiple of 256.
    seed : int
        Of the random rounding.

    Examples
    --------
    >>> TernGrad(clip=2.5).spec
    'terngrad:clip=2.5'

    References
    ----------
    Wen, Xu, Yan, Wu, Wang, Chen and Li, "TernGrad: Ternary gradients to reduce communication in distributed deep
    learning", NIPS 2017.
    """

    codec_id: ClassVar[str] = "terngrad"
    number: ClassVar[int] = 15
    summary: ClassVar[str] = "-1, 0 or 1 times the block's largest magnitude, at random without bias, 2 bits"
    levels: ClassVar[int] = 1  # type: ignore[misc]
    norm: ClassVar[str] = "max"  # type: ignore[misc]
    spacing: ClassVar[str] = "linear"  # type: ignore[misc]

    clip: float = 0.0
    block: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("clip", self.clip, 0)
        check_integer("block", self.block, PACKED, multiple=PACKED)
        check_integer("seed", self.seed, 0)
