"""Signs: one bit an element, and how large the elements of a block are on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.blocks import BlockCodec
from collcomp.codecs.checks import check_flag

__all__ = ["Sign"]


@dataclass(frozen=True)
class Sign(BlockCodec):
    """The sign of each element, times the mean magnitude of its block (float32).

    Of all values that two levels -s and s can give, these are the closest in the mean square: the error of a block is
    its variance of magnitudes. There is no bound for a single element; use it with `feedback`.
    A zero has a sign: 0.0 counts as positive, -0.0 as negative. A block of zeros stays what it is.
    Blocks with a NaN, an infinity, or a mean magnitude of at least 2**127 or below 2**-119 (but not 0) travel as they
    are, as do those whose sum of magnitudes overflows.

    Parameters
    ----------
    block : int
        Elements that share a mean; a multiple of 8, at least 16.
    feedback : bool
        Carry the error into the next call with the same key.

    Examples
    --------
    >>> Sign(block=1024, feedback=True).spec
    'sign:block=1024,feedback'

    Source: Seide et al., "1-bit stochastic gradient descent and its application to data-parallel distributed training
    of speech DNNs", Interspeech 2014; Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019.
    """

    codec_id: ClassVar[str] = "sign"
    number: ClassVar[int] = 12
    summary: ClassVar[str] = "one bit an element, times the mean magnitude of its block"
    on_devices: ClassVar[bool] = True
    _codes_per_byte: ClassVar[int] = 8

    feedback: bool = False

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """An element may be anywhere between zero and the largest, or all others be."""
        return peak.copy()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("feedback", self.feedback)
