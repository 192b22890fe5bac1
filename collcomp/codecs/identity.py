"""No compression: the values' own bytes, so that every algorithm also runs without a codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.frame import Frame

__all__ = ["Identity"]


@dataclass(frozen=True)
class Identity(Codec):
    """The values as they are, of any dtype that can travel."""

    codec_id: ClassVar[str] = "identity"
    number: ClassVar[int] = 1
    summary: ClassVar[str] = "the values themselves, for algorithms without compression"
    lossless: ClassVar[bool] = True
    verbatim: ClassVar[bool] = True
    on_devices: ClassVar[bool] = True

    @property
    def monotone(self) -> bool:
        """Nothing is rounded."""
        return True

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Exactly the values' bytes."""
        return count * dtype.itemsize

    def fixed_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The values' bytes."""
        return count * dtype.itemsize

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        payload[: src.nbytes] = src.view(np.uint8)
        return src.nbytes, 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        dst[...] = frame.values(frame.dtype)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        np.add(acc, frame.values(frame.dtype), out=acc, casting="same_kind")
