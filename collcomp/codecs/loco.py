"""4-bit integers with a residual that decays and takes a byte an element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from collcomp.codecs.blocks import BlockCodec
from collcomp.codecs.checks import as_number, check_integer
from collcomp.kernels import cpu

__all__ = ["LoCo"]

#: The residual's: one 8-bit code a byte.
_RESIDUAL_PLANES = (0,)


@dataclass(frozen=True)
class LoCo(BlockCodec):
    """4-bit integers, and a residual of 8-bit integers that averages over what was rounded off.

    Frames are those of `Int4`, with its error and its special values. The residual e of values g becomes
    ``beta * e + (1 - beta) * (g + e - sent)``, rounded to nearest as by `Int8`: it takes a quarter of the memory, and
    one bad call weighs less. So the sums of what was given and sent differ by ``e / (1 - beta)``, and by the residual's
    own rounding, of at most 1/254 of its block's largest magnitude, times ``1 / (1 - beta)``, in each call.
    Blocks that travel as they are lose nothing: their residual becomes ``beta * e``.
    Transfers that name no key, such as those of collectives that only move values, are encoded without a residual.

    Parameters
    ----------
    block : int
        Elements that share a scale; even, at least 16.
    beta : float
        Weight of the old residual, at least 0 and below 1.
    reset : int
        Calls after which the residual starts at zero again.

    Examples
    --------
    >>> LoCo(beta=0.9).spec
    'loco:beta=0.9'

    Source: Xie et al., "LoCo: low-bit communication adaptor for large-scale model training", 2024 (arXiv 2407.04480),
    as in DeepSpeed's ``all_to_all_loco_quant_reduce``.
    """

    codec_id: ClassVar[str] = "loco"
    number: ClassVar[int] = 17
    summary: ClassVar[str] = "4-bit integers with a decaying residual of 8-bit integers"
    stateful: ClassVar[bool] = True
    _codes_per_byte: ClassVar[int] = 2

    beta: float = 0.8
    reset: int = 1024

    feedback = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= as_number("beta", self.beta) < 1:
            raise ValueError(f"beta: expected a number of at least 0 and below 1, got {self.beta!r}")
        check_integer("reset", self.reset, 1)

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray:
        """Half a step of 4 bits."""
        return peak * ((1 + 2.0**-13) / 14)

    def residual_dtype(self, dtype: np.dtype) -> np.dtype:
        """int8, whose scales are a part of the state."""
        return np.dtype(np.int8)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        blocks = -(-src.size // self.block)
        calls = int(state.get("calls", 0))
        held = state.get("scales")
        if held is None or held.size != blocks or calls % self.reset == 0:
            held = state["scales"] = np.zeros(blocks, np.float32)
        state["calls"] = np.array(calls + 1)
        beta, work = src.dtype.type(self.beta), np.empty(self.block, src.dtype)

        def encode(*arguments: Any) -> int:
            x, residual, scales, codes, raw, block, planes, count, _, first = arguments
            return cpu.load("loco").encode_feedback(
                *(x, residual.view(np.uint8), held[first : first + len(scales)], beta, work[:block]),
                *(scales, codes, raw, block, planes, _RESIDUAL_PLANES, count, first),
            )

        return self._run(encode, (src, residual), payload, stream)
