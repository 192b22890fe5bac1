"""Sparse frames of a random selection, which a key in the header gives again: no indices travel, and frames add."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from collcomp.codecs import selection
from collcomp.codecs.base import working_dtype
from collcomp.codecs.checks import check_flag, check_integer
from collcomp.codecs.sparse import FixedShare
from collcomp.codecs.streams import random_key
from collcomp.devices import empty, like
from collcomp.errors import FrameError
from collcomp.frame import Frame
from collcomp.kernels import cpu, kernels_for

__all__ = ["RandomBlock", "RandomK"]

#: Bits of a key on the wire; the others are zero.
_KEY_BITS = 48


@dataclass(frozen=True)
class _RandomShare(FixedShare):
    """The payload is the values of the selection, whose key is the header's `extra`."""

    summable: ClassVar[bool] = True
    on_devices: ClassVar[bool] = True

    scaled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("scaled", self.scaled)
        check_integer("seed", self.seed, 0)
        if self.scaled and self.feedback:
            raise ValueError("scaled: True given beside feedback, which makes up for what is left out itself")

    @abstractmethod
    def _drawn(self, key: int, count: int, beside: np.ndarray) -> np.ndarray | list[slice]:
        """The selection of `key`: slices, or indices where `beside` lies, ascending."""

    @abstractmethod
    def _gather(self, drawn: Any, x: np.ndarray, values: np.ndarray) -> None:
        """``values = x[drawn]``."""

    @abstractmethod
    def _scatter(self, drawn: Any, values: np.ndarray, dst: np.ndarray) -> None:
        """``dst[drawn] = values``, the others zero."""

    @abstractmethod
    def _scatter_add(self, drawn: Any, values: np.ndarray, acc: np.ndarray) -> None:
        """``acc[drawn] += values``."""

    @abstractmethod
    def _clear(self, drawn: Any, x: np.ndarray) -> None:
        """``x[drawn] = 0``."""

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Exactly the values."""
        return self.selected(count) * dtype.itemsize

    def reduction(
        self,
        src: np.ndarray,
        dst: np.ndarray,
        size: int,
        *,
        shared: int,
        stream: int,
        residual: np.ndarray | None,
        state: dict[str, np.ndarray],
    ) -> Iterator[tuple[np.ndarray, str]]:
        """Sum the values of one selection, which all ranks draw from `shared`, in one round."""
        drawn = self._drawn(self._key(shared), src.size, src)
        values = empty(self.selected(src.size), src.dtype, src)
        if residual is None:
            self._gather_scaled(drawn, src, values)
        else:
            residual += src
            self._gather(drawn, residual, values)
            self._clear(drawn, residual)
        yield values, "sum"
        self._scatter(drawn, values, dst)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        key = self._key(stream)
        values = selection.values_in(payload, self.selected(src.size), src.dtype)
        self._gather_scaled(self._drawn(key, src.size, src), src, values)
        return values.nbytes, key

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        if self.scaled:
            return super()._encode_feedback(src, residual, payload, stream, state)
        residual += src
        key = self._key(stream)
        values = selection.values_in(payload, self.selected(src.size), src.dtype)
        drawn = self._drawn(key, src.size, src)
        self._gather(drawn, residual, values)
        self._clear(drawn, residual)
        return values.nbytes, key

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        values = self._checked_values(frame)
        self._scatter(self._drawn(frame.extra, frame.count, values), values, dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        values = self._checked_values(frame)
        self._scatter_add(self._drawn(frame.extra, frame.count, values), values, acc)

    def _checked_values(self, frame: Frame) -> np.ndarray:
        dtype = working_dtype(frame.dtype)
        frame.check_nbytes(self.max_payload_nbytes(frame.count, dtype))
        if frame.extra >> _KEY_BITS:
            raise FrameError(f"frame: a key of more than {_KEY_BITS} bits")
        return frame.payload.view(dtype)

    def _gather_scaled(self, drawn: Any, x: np.ndarray, values: np.ndarray) -> None:
        self._gather(drawn, x, values)
        if self.scaled and values.size:
            values *= values.dtype.type(x.size / values.size)

    def _key(self, stream: int) -> int:
        return random_key(self.seed, stream) & ((1 << _KEY_BITS) - 1)


@dataclass(frozen=True)
class RandomK(_RandomShare):
    """k random elements, each set of them equally likely; the others become zero.

    The header says how they were drawn, so no indices travel, and an allreduce draws the same elements on every rank
    and sums nothing but these. Every selected element arrives bit by bit (`scaled`: multiplied by count / k, rounded
    once), whatever it is; the error of the others is their magnitude.

    Parameters
    ----------
    ratio : float, optional
        Share of the elements that is selected, 0 < `ratio` <= 1, at least one element; 0.01 unless `k` is given.
    k : int, optional
        Number of elements that are selected (all, where a message is shorter).
    feedback : bool
        Carry what was not selected into the next call with the same key; without it, it is lost.
    scaled : bool
        Multiply what is selected by count / k, which makes the result unbiased; not beside `feedback`.
    seed : int
        Of the selection.

    Notes
    -----
    Elements are drawn without replacement: with it, as in some published code, elements that are drawn twice take
    the place of others, and the result is biased.

    Examples
    --------
    >>> RandomK(ratio=0.1, scaled=True).spec
    'randomk:ratio=0.1,scaled'

    Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", NeurIPS 2018; Zhong et al., "Compressed
    communication for distributed training: adaptive methods and system", 2021, for seeds in place of indices.
    """

    codec_id: ClassVar[str] = "randomk"
    number: ClassVar[int] = 19
    summary: ClassVar[str] = "random elements that all ranks draw alike, no indices; the others become zero"

    def selection(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        values = self._checked_values(frame)
        return self._drawn(frame.extra, frame.count, values), values

    def _drawn(self, key: int, count: int, beside: np.ndarray) -> np.ndarray:
        selection.check_count(count)
        indices = np.empty(self.selected(count), np.uint32)
        cpu.load("draws").draw(key, count, np.empty(-(-count // 64), np.uint64), indices)
        return like(indices, beside)

    def _gather(self, drawn: np.ndarray, x: np.ndarray, values: np.ndarray) -> None:
        kernels_for(x, "sparse").gather(drawn, x, values)

    def _scatter(self, drawn: np.ndarray, values: np.ndarray, dst: np.ndarray) -> None:
        kernels_for(dst, "sparse").scatter(drawn, values, dst)

    def _scatter_add(self, drawn: np.ndarray, values: np.ndarray, acc: np.ndarray) -> None:
        kernels_for(acc, "sparse").scatter_add(drawn, values, acc)

    def _clear(self, drawn: np.ndarray, x: np.ndarray) -> None:
        kernels_for(x, "sparse").clear(drawn, x)


@dataclass(frozen=True)
class RandomBlock(_RandomShare):
    """k neighbours from a random place on, round the end if need be; the others become zero.

    As `randomk`, but at the speed of a copy. Where the error of neighbours is alike, it varies more from call to
    call. With feedback, an element waits count / k calls on average until it is sent.

    Parameters
    ----------
    ratio : float, optional
        Share of the elements that is selected, 0 < `ratio` <= 1, at least one element; 0.01 unless `k` is given.
    k : int, optional
        Number of elements that are selected (all, where a message is shorter).
    feedback : bool
        Carry what was not selected into the next call with the same key; without it, it is lost.
    scaled : bool
        Multiply what is selected by count / k, which makes the result unbiased; not beside `feedback`.
    seed : int
        Of the selection.

    Examples
    --------
    >>> RandomBlock(k=4096, feedback=True).spec
    'randomblock:k=4096,feedback'

    Source: Vogels, Karimireddy, Jaggi, "PowerSGD", NeurIPS 2019 (its random block baseline); Alistarh, Hoefler et
    al., "On the utility of sparse communication", 2020.
    """

    codec_id: ClassVar[str] = "randomblock"
    number: ClassVar[int] = 20
    summary: ClassVar[str] = "a random run of neighbours that all ranks draw alike; the others become zero"

    def selection(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        values = self._checked_values(frame)
        drawn = self._drawn(frame.extra, frame.count, values)
        indices = np.concatenate([np.arange(part.start, part.stop, dtype=np.uint32) for part in drawn])
        return like(indices, values), values

    def _drawn(self, key: int, count: int, beside: np.ndarray) -> list[slice]:
        selection.check_count(count)
        k = self.selected(count)
        start = cpu.load("draws").draw_one(key, count) if count else 0
        wrapped = max(0, start + k - count)
        return [slice(0, wrapped), slice(start, start + k - wrapped)]

    def _gather(self, drawn: list[slice], x: np.ndarray, values: np.ndarray) -> None:
        for part, piece in _paired(drawn, values):
            piece[:] = x[part]

    def _scatter(self, drawn: list[slice], values: np.ndarray, dst: np.ndarray) -> None:
        dst[:] = 0
        for part, piece in _paired(drawn, values):
            dst[part] = piece

    def _scatter_add(self, drawn: list[slice], values: np.ndarray, acc: np.ndarray) -> None:
        for part, piece in _paired(drawn, values):
            acc[part] += piece

    def _clear(self, drawn: list[slice], x: np.ndarray) -> None:
        for part in drawn:
            x[part] = 0


def _paired(parts: list[slice], values: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    at = 0
    for part in parts:
        yield part, values[at : at + part.stop - part.start]
        at += part.stop - part.start
