"""MPC: a lossless codec for smooth or redundant floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.codecs.checks import check_integer
from collcomp.errors import FrameError
from collcomp.frame import Frame
from collcomp.kernels import cpu

__all__ = ["MPC"]

_MAGIC = 0x63706D00
_HEADER_WORDS = 2
_GROUP = 32
_BLOCK = 1024


class _Words(NamedTuple):
    """The words of an array; the last is in `tail` where the array ends within it."""

    whole: np.ndarray
    tail: np.ndarray
    number: int


@dataclass(frozen=True)
class MPC(Codec):
    """Massively Parallel Compression: differences, a bit transpose, differences, zero elimination.

    Every value arrives bit by bit, NaN and -0.0 too. Values of any dtype are taken as 32-bit words, in blocks of 1024.
    It lives on neighbours that are alike: smooth float32 data shrink by 3, values that were rounded to bfloat16 by 2.3,
    nearly constant ones by up to 30. On float32 gradients it reaches 1.1, so it helps slow links only; noise, and
    float64 that is not repetitive, grow by 3%.

    The words are those of the paper's code for floats, but for one at the end that it writes and never reads. Its
    bound of ``2 + n + ceil(n / 32)`` words does not hold where the last 32 are not full; ours counts those as full.

    Parameters
    ----------
    dim : int
        Each word is predicted by the one `dim` before it: number of interleaved fields, 1 to 32.

    Examples
    --------
    >>> MPC(dim=3).spec
    'mpc:dim=3'

    Source: Yang, Mukka, Hesaaraki, Burtscher, "MPC: A Massively Parallel Compression Algorithm for Scientific Data",
    CLUSTER 2015.
    """

    codec_id: ClassVar[str] = "mpc"
    number: ClassVar[int] = 28
    summary: ClassVar[str] = "lossless, for smooth or redundant values: differences, bit planes, no zeros"
    lossless: ClassVar[bool] = True

    dim: int = 1

    def __post_init__(self) -> None:
        check_integer("dim", self.dim, 1)
        if self.dim > _GROUP:
            raise ValueError(f"dim: expected an integer from 1 to {_GROUP}, got {self.dim!r}")

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Header, bitmaps, and every word of every group of 32."""
        groups = -(-_word_count(count * dtype.itemsize) // _GROUP)
        return 4 * (_HEADER_WORDS + groups * (1 + _GROUP))

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        words = _words_of(src)
        payload = payload[: self.max_payload_nbytes(src.size, src.dtype)].view(np.uint32)
        payload[:_HEADER_WORDS] = self._header(words.number)
        start = _HEADER_WORDS - (-words.number // _GROUP)
        scratch = np.empty((2, _BLOCK), np.uint32)
        kept = cpu.load("mpc").encode(
            words.whole, words.tail, self.dim, payload[_HEADER_WORDS:start], payload[start:], *scratch, words.number
        )
        return 4 * (start + kept), 0

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        words = _words_of(dst)
        start = _HEADER_WORDS - (-words.number // _GROUP)
        if frame.payload.size % 4 or frame.payload.size < 4 * start:
            raise FrameError(f"frame: {frame.payload.size} payload bytes cannot hold {words.number} words")
        payload = frame.payload.view(np.uint32)
        if payload[:_HEADER_WORDS].tolist() != self._header(words.number):
            raise FrameError(f"frame: MPC's header does not tell of {words.number} words with dim={self.dim}")
        bitmaps, kept = payload[_HEADER_WORDS:start], payload[start:]
        found = cpu.load("mpc").count_words(bitmaps)
        if found != kept.size:
            raise FrameError(f"frame: {kept.size} words, the bitmaps tell of {found}")
        scratch = np.empty((2, _BLOCK), np.uint32)
        cpu.load("mpc").decode(bitmaps, kept, self.dim, words.whole, words.tail, *scratch, words.number)
        dst.view(np.uint8)[words.whole.nbytes :] = words.tail.view(np.uint8)[: dst.nbytes - words.whole.nbytes]

    def _header(self, count: int) -> list[int]:
        return [_MAGIC - 1 + self.dim, count]


def _word_count(nbytes: int) -> int:
    return -(-nbytes // 4)


def _words_of(array: np.ndarray) -> _Words:
    count = _word_count(array.nbytes)
    if count >= 2**31:
        raise ValueError(f"count: {array.size} elements, MPC's header reaches 2**31 - 1 words of 32 bits")
    octets = array.view(np.uint8)
    whole = octets[: array.nbytes // 4 * 4]
    tail = np.zeros(4, np.uint8)
    tail[: array.nbytes - whole.size] = octets[whole.size :]
    return _Words(whole.view(np.uint32), tail.view(np.uint32), count)
