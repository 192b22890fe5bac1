"""Rotation before quantisation: outliers are spread over their block, which then needs a smaller scale."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import check_flag, check_integer
from collcomp.codecs.quantised import Int4
from collcomp.codecs.streams import hashes, random_key
from collcomp.devices import device_of, empty, on_device, to_device
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import kernels_for

__all__ = ["Hadamard", "check_rotation_block", "diagonal", "diagonal_beside", "rotated_size"]

_SMALLEST, _LARGEST = 256, 1 << 16


def check_rotation_block(block: Any) -> None:
    """`TypeError` or `ValueError` unless blocks of this size can be rotated."""
    check_integer("block", block, _SMALLEST)
    if block > _LARGEST or block & (block - 1):
        raise ValueError(f"block: expected a power of two from {_SMALLEST} to {_LARGEST}, got {block!r}")


def rotated_size(count: int, block: int) -> int:
    """Elements of the last block of `count` once it is rotated: a power of two; 0 where all blocks are whole."""
    rest = count % block
    return max(_SMALLEST, 1 << (rest - 1).bit_length()) if rest else 0


@functools.lru_cache(maxsize=64)
def diagonal(key: int, size: int, dtype: np.dtype) -> np.ndarray:
    """`size` random signs, by their positions, times ``1 / sqrt(size)``."""
    return (np.where(hashes(size, key) >> np.uint64(63), -1, 1) / math.sqrt(max(size, 1))).astype(dtype)


def diagonal_beside(key: int, size: int, values: Any) -> Any:
    """`diagonal`, of the dtype of `values`, where these lie."""
    if on_device(values):
        return _diagonal_on_device(key, size, values.dtype, device_of(values))
    return diagonal(key, size, values.dtype)


@functools.lru_cache(maxsize=64)
def _diagonal_on_device(key: int, size: int, dtype: np.dtype, device: str) -> Any:
    return to_device(diagonal(key, size, dtype))


class _Part(NamedTuple):
    """Blocks of one size: all whole ones, or the last one."""

    values: slice
    rotated: slice
    plain: slice
    diagonal: np.ndarray


@dataclass(frozen=True)
class Hadamard(Codec):
    """A random rotation of each block, and the codec `inner` for the rotated values: ``"hadamard+int4:block=128"``.

    A randomised Walsh-Hadamard transform makes each value of a block the signed sum of all, so that rotated values are
    about normally distributed, whatever the block looked like: an outlier costs the others no precision. Rotations
    keep lengths: the root of the mean squared error of a block is that of `inner` for the rotated values, and the
    arithmetic adds rounding of about ``log2(block)`` units in the last place of the block's largest magnitude.

    A block with a NaN, an infinity or a magnitude of at least 2**90 is not rotated: `inner` gets it as it is. A last
    block that is not whole is filled with zeros up to a power of two. -0.0 may become 0.0.

    Parameters
    ----------
    block : int
        Elements that are rotated together; a power of two from 256 to 65536.
    seed : int
        Of the random signs.
    feedback : bool
        Carry what was rounded off into the next call with the same key.
    inner : Codec
        Encodes the rotated values; lossy, of dense values, without feedback of its own.

    Examples
    --------
    >>> Hadamard(inner=Int4(block=128)).spec
    'hadamard+int4:block=128'

    References
    ----------
    Suresh, Yu, Kumar and McMahan, "Distributed mean estimation with limited communication", ICML 2017.
    """

    codec_id: ClassVar[str] = "hadamard"
    number: ClassVar[int] = 16
    summary: ClassVar[str] = "a random rotation of each block, against outliers, before another codec: hadamard+int4"

    block: int = 1024
    seed: int = 0
    feedback: bool = False
    inner: Codec = field(default=Int4())

    def __post_init__(self) -> None:
        check_rotation_block(self.block)
        check_integer("seed", self.seed, 0)
        check_flag("feedback", self.feedback)
        inner = self.inner
        if not isinstance(inner, Codec):
            raise TypeError(f"inner: expected a Codec, got {inner!r}")
        if inner.feedback:
            raise ValueError(f"inner: {inner.spec!r} has feedback; it belongs to the rotation: 'hadamard:feedback+...'")
        if inner.lossless or inner.sparse or inner.summable or inner.whole or inner.stateful or hasattr(inner, "inner"):
            raise ValueError(f"inner: expected a quantiser of dense values, got {inner.spec!r}")

    @property
    def on_devices(self) -> bool:  # type: ignore[override]
        """Whether the inner codec can be used there."""
        return self.inner.on_devices

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """A bit a block, and what the inner codec needs."""
        return self._start(count) + self.inner.max_payload_nbytes(self._padded(count), dtype)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        rotated = self._rotate(src, None, payload)
        return self._finished(src.size, self.inner._encode(rotated, payload[self._start(src.size) :], stream))

    def _encode_keep(self, src: np.ndarray, kept: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        rotated, outcome = self._rotate_and_keep(src, None, payload, stream)
        self._unrotate_to(kept, rotated, payload)
        return outcome

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        rotated, outcome = self._rotate_and_keep(src, residual, payload, stream)
        self._unrotate("unrotate_subtract", rotated, payload, residual)
        return outcome

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        inner = self._inner_frame(frame)
        rotated = dst if inner.count == dst.size else empty(inner.count, dst.dtype, dst)
        self.inner._decode(inner, rotated)
        self._unrotate_to(dst, rotated, frame.payload)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        inner = self._inner_frame(frame)
        rotated = empty(inner.count, acc.dtype, acc)
        self.inner._decode(inner, rotated)
        self._unrotate("unrotate_add", rotated, frame.payload, acc)

    def _rotate(self, src: np.ndarray, residual: np.ndarray | None, payload: np.ndarray) -> np.ndarray:
        """The rotated values, or sums with `residual`, left there; says in `payload` which blocks are not rotated."""
        rotated = empty(self._padded(src.size), src.dtype, src)
        payload[: self._start(src.size)] = 0
        for part in self._parts(src):
            addend = None if residual is None else residual[part.values]
            kernels_for(src, "rotation").rotate(
                src[part.values], addend, part.diagonal, rotated[part.rotated], *self._plain(payload, part, src.size)
            )
        return rotated

    def _rotate_and_keep(
        self, src: np.ndarray, residual: np.ndarray | None, payload: np.ndarray, stream: int
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Encode; what decoding will give before it is rotated back, and the outcome."""
        rotated = self._rotate(src, residual, payload)
        outcome = self.inner._encode_keep(rotated, rotated, payload[self._start(src.size) :], stream)
        return rotated, self._finished(src.size, outcome)

    def _unrotate(self, name: str, rotated: np.ndarray, payload: np.ndarray, values: np.ndarray) -> None:
        """Rotate back by kernel `name`, which adds to `values` or subtracts from them; `rotated` is overwritten."""
        kernel = getattr(kernels_for(values, "rotation"), name)
        for part in self._parts(values):
            plain = self._plain(payload, part, values.size)
            kernel(rotated[part.rotated], part.diagonal, *plain, values[part.values])

    def _unrotate_to(self, dst: np.ndarray, rotated: np.ndarray, payload: np.ndarray) -> None:
        """Rotate back in place, into `dst` if that is elsewhere."""
        kernels = kernels_for(dst, "rotation")
        for part in self._parts(dst):
            kernels.unrotate(rotated[part.rotated], part.diagonal, *self._plain(payload, part, dst.size))
        if rotated is not dst:
            dst[...] = rotated[: dst.size]

    def _plain(self, payload: np.ndarray, part: _Part, count: int) -> tuple[Any, ...]:
        """Where kernels find or write which blocks of `part` are plain; on devices that is told by 32-bit words."""
        if on_device(payload):
            return payload[: self._start(count)].view(np.uint32), 8 * part.plain.start
        return (payload[part.plain],)

    def _inner_frame(self, frame: Frame) -> Frame:
        count, start = self._padded(frame.count), self._start(frame.count)
        if frame.payload.size < start:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, expected {start} and more")
        values = Frame(
            self.inner.number, working_dtype(frame.dtype), self.inner.digest, 0, count, frame.extra, count,
            frame.payload[start:],
        )  # fmt: skip
        self.inner.check(values, count)
        return values

    def _finished(self, count: int, outcome: tuple[int, int]) -> tuple[int, int]:
        return self._start(count) + outcome[0], outcome[1]

    def _padded(self, count: int) -> int:
        return count - count % self.block + rotated_size(count, self.block)

    def _start(self, count: int) -> int:
        """Where the inner codec's payload starts: behind a bit for each whole block, and a byte for the last."""
        return align(-(-(count // self.block) // 8) + (count % self.block > 0))

    def _parts(self, values: np.ndarray) -> Iterator[_Part]:
        key, count = random_key(self.seed, 0), values.size
        full, size = count - count % self.block, rotated_size(count, self.block)
        nbytes = -(-(full // self.block) // 8)
        if full:
            whole = slice(0, full)
            yield _Part(whole, whole, slice(0, nbytes), diagonal_beside(key, self.block, values))
        if size:
            rotated, plain = slice(full, full + size), slice(nbytes, nbytes + 1)
            yield _Part(slice(full, count), rotated, plain, diagonal_beside(key, size, values))
