"""Low-rank approximation of a tensor seen as a matrix.

Source: Vogels, Karimireddy, and Jaggi, "PowerSGD: practical low-rank gradient compression for distributed
optimization", NeurIPS 2019; the local residual is from https://github.com/epfml/powersgd.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import check_flag, check_integer, check_number
from collcomp.errors import FrameError
from collcomp.frame import Frame
from collcomp.kernels import cpu

__all__ = ["PowerSGD"]

#: Columns of a matrix that is derived from a count are a multiple of this.
_COLUMN_STEP = 16

_Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PowerSGD(Codec):
    """The product of two thin factors, ``p @ q``, which a step of power iteration finds.

    The elements form a matrix of `columns` columns, whose last row is filled up with zeros; a near square one by
    default. If it came from a matrix, `columns` should be that one's number of columns, or rows and columns mix and the
    matrix is of low rank no more.

    A sum takes two rounds: of p = M q and, when its columns have been made orthonormal, of q = Mᵀ p. Each rank's next q
    starts from the last one under the same key, so that p @ q approaches the best approximation of this rank while the
    tensor changes slowly. A frame by itself, which has nothing to start from, takes two steps at once. Sums and frames
    are exact, up to rounding, for matrices of at most this rank; otherwise the error, in Frobenius norm, is at least
    that of the best approximation, which is the root of the sum of squares of the other singular values, and at most
    that of zero. Results are linear in the operands: summing before or after makes no difference but rounding.

    With feedback, the residual is what lies outside p of the rank's own operand, M - p (Mᵀ p)ᵀ. Its sum over ranks is
    that of the operands minus the result, as it would be for M minus the mean result, which some implementations keep.

    Small matrices, whose factors are not `min_rate` times smaller, and those with a NaN, an infinity, or products that
    overflow, travel as they are; with one of these among the operands, a sum is a plain one. -0.0 may become 0.0.

    Parameters
    ----------
    rank : int
        Columns of p and rows of q.
    columns : int, optional
        Columns of the matrix.
    min_rate : float
        Compress only if the factors have fewer than 1 / `min_rate` times the elements; at least 1.
    seed : int
        Of the first q.
    feedback : bool
        Carry what the factors lack into the next call with the same key.

    Examples
    --------
    >>> PowerSGD(rank=2, columns=768, feedback=True).spec
    'powersgd:rank=2,columns=768,feedback'
    """

    codec_id: ClassVar[str] = "powersgd"
    number: ClassVar[int] = 21
    summary: ClassVar[str] = "product of two thin factors, which add without decoding"
    summable: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    rank: int = 4
    columns: int | None = None
    min_rate: float = 2.0
    seed: int = 0
    feedback: bool = False

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1)
        if self.columns is not None:
            check_integer("columns", self.columns, 1)
        check_number("min_rate", self.min_rate, 1)
        check_integer("seed", self.seed, 0)
        check_flag("feedback", self.feedback)

    def shape(self, count: int) -> tuple[int, int] | None:
        """Rows and columns of the matrix that `count` elements form; None if they are not compressed."""
        if not count:
            return None
        columns = self.columns or -(-math.isqrt(count) // _COLUMN_STEP) * _COLUMN_STEP
        rows = -(-count // columns)
        return (rows, columns) if count > self.min_rate * self.rank * (rows + columns) else None

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The elements as they are; factors are smaller."""
        return count * dtype.itemsize

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
        """Sum p, then q; a plain sum if an element of either is not finite, or there is nothing to gain."""
        factors = yield from self._factors(src, residual, state)
        if factors is None:
            dst[...] = src if residual is None else residual
            if residual is not None:
                residual[:] = 0
            yield dst, "sum"
        else:
            cpu.load("powersgd").multiply(*factors, dst)

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        state: dict[str, np.ndarray] = {}
        _alone(self._factors(src, None, state))
        return self._write(_alone(self._factors(src, None, state)), src, payload)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        factors = _alone(self._factors(src, residual, state))
        outcome = self._write(factors, src if residual is None else residual, payload)
        if factors is None and residual is not None:
            residual[:] = 0
        return outcome

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        factors = self._checked_factors(frame)
        if factors is None:
            dst[...] = frame.values(dst.dtype)
        else:
            cpu.load("powersgd").multiply(*factors, dst)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        factors = self._checked_factors(frame)
        if factors is None:
            acc += frame.values(acc.dtype)
        else:
            self._add_product(*factors, acc)

    def _factors(
        self, src: np.ndarray, residual: np.ndarray | None, state: dict[str, np.ndarray]
    ) -> Generator[tuple[np.ndarray, str], None, _Factors | None]:
        """One step, in rounds as of `reduction`; the factors of the sum, or None where it has to be a plain one.

        `residual` becomes ``src + residual``, minus this rank's part of the product if there are factors.
        """
        shape = self.shape(src.size)
        if shape is None:
            if residual is not None:
                residual += src
            return None
        kernels = cpu.load("powersgd")
        rows, columns = shape
        x, addend = (src, None) if residual is None else (residual, src)
        q = state.get("q")
        if q is None or q.shape != (self.rank, columns) or q.dtype != x.dtype:
            q = self._start(columns, x.dtype)
        p = np.empty((rows, self.rank), x.dtype)
        kernels.project(x, addend, q, p, np.empty(4 * kernels.LANES, x.dtype))
        yield p, "sum"
        if not np.isfinite(p).all():
            return None
        p = _orthonormal(p)
        own = np.empty((self.rank, columns), x.dtype)
        kernels.project_back(x, p, own)
        q = own.copy()
        yield q, "sum"
        if not np.isfinite(q).all():
            return None
        if residual is not None:
            self._add_product(-p, own, residual)
        # Rows of largest magnitude 1: their scale is no matter, but would be squared with every call. A row of zeros
        # would stay one for good.
        peaks = np.abs(q).max(axis=1, keepdims=True)
        state["q"] = np.where(peaks > 0, q / np.where(peaks > 0, peaks, 1), self._start(columns, x.dtype))
        return p, q

    def _start(self, columns: int, dtype: np.dtype) -> np.ndarray:
        """The first q: uniform in [-1, 1), the same with every version of NumPy."""
        bits = np.random.PCG64(self.seed).random_raw(self.rank * columns)
        return ((bits >> np.uint64(11)) * 2.0**-52 - 1).astype(dtype).reshape(self.rank, columns)

    def _add_product(self, p: np.ndarray, q: np.ndarray, acc: np.ndarray) -> None:
        kernels = cpu.load("powersgd")
        kernels.multiply_add(p, q, acc, np.empty(kernels.TILE, acc.dtype))

    def _write(self, factors: _Factors | None, x: np.ndarray, payload: np.ndarray) -> tuple[int, int]:
        """The payload is p, row by row, and q, row by row; `extra` is the rank, 0 if the elements stand as they are."""
        if factors is None:
            payload[: x.nbytes].view(x.dtype)[...] = x
            return x.nbytes, 0
        p, q = factors
        payload[: p.nbytes].view(p.dtype)[...] = p.ravel()
        payload[p.nbytes : p.nbytes + q.nbytes].view(q.dtype)[...] = q.ravel()
        return p.nbytes + q.nbytes, self.rank

    def _checked_factors(self, frame: Frame) -> _Factors | None:
        dtype = working_dtype(frame.dtype)
        shape = self.shape(frame.count) if frame.extra else None
        if frame.extra and (shape is None or frame.extra != self.rank):
            raise FrameError(f"frame: factors of rank {frame.extra}, expected {self.rank if shape else 'none'}")
        elements = frame.count if shape is None else self.rank * sum(shape)
        frame.check_nbytes(elements * dtype.itemsize)
        if shape is None:
            return None
        rows, columns = shape
        values = frame.payload.view(dtype)
        return values[: rows * self.rank].reshape(rows, -1), values[rows * self.rank :].reshape(-1, columns)


def _alone(rounds: Generator[Any, None, _Factors | None]) -> _Factors | None:
    """The outcome of `rounds` for one rank by itself, for which they change nothing."""
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            return end.value


def _orthonormal(p: np.ndarray) -> np.ndarray:
    """`p` with orthonormal columns; one that depends on those before it becomes zero."""
    columns = p.astype(np.float64)
    cpu.load("powersgd").orthonormalise(columns, np.empty(p.shape[1]))
    return columns.astype(p.dtype)
