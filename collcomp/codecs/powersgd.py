"""Low-rank approximation of a tensor, or of several at once, seen as matrices.

Source: Vogels, Karimireddy, and Jaggi, "PowerSGD: practical low-rank gradient compression for distributed
optimization", NeurIPS 2019; the local residual is from https://github.com/epfml/powersgd.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from collcomp.codecs.base import Codec, working_dtype
from collcomp.codecs.checks import check_flag, check_integer, check_number
from collcomp.devices import empty, host_copy, like, on_device
from collcomp.errors import FrameError
from collcomp.frame import Frame
from collcomp.kernels import cpu, kernels_for

__all__ = ["PowerSGD"]

#: Columns of a matrix that is derived from a count are a multiple of this.
_COLUMN_STEP = 16

_Factors = tuple[np.ndarray, np.ndarray]
_Outcome = TypeVar("_Outcome")


class _Shapes(tuple[tuple[int, ...], ...]):
    """Shapes of tensors; ``256x768/768`` in a spec."""

    @classmethod
    def of(cls, value: Any) -> _Shapes:
        """From ``"256x768/768"``, from an integer (what a spec's ``768`` becomes), or from a sequence of sequences."""
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            value = str(value)
        try:
            if isinstance(value, str):
                value = [[int(n) for n in shape.split("x")] for shape in value.split("/")]
            shapes = [tuple(shape) for shape in value]
        except ValueError:
            raise ValueError(f"shapes: expected lengths like 256x768/768, got {value!r}") from None
        except TypeError:
            raise TypeError(f"shapes: expected a sequence of shapes, got {value!r}") from None
        for shape in shapes:
            for length in shape:
                check_integer("shapes", length, 0)
        return cls(tuple(int(n) for n in shape) or (1,) for shape in shapes)

    def __str__(self) -> str:
        return "/".join("x".join(map(str, shape)) for shape in self)


class _Piece(NamedTuple):
    """A matrix of the message, or, where `columns` is 0, elements between matrices, which travel as they are."""

    part: slice
    rows: int
    columns: int
    #: Of its q in the state.
    name: str


@dataclass(frozen=True)
class PowerSGD(Codec):
    """The product of two thin factors, ``p @ q``, which a step of power iteration finds.

    The elements form a matrix of `columns` columns, whose last row is filled up with zeros; a near square one by
    default. If it came from a matrix, `columns` should be that one's number of columns, or rows and columns mix and the
    matrix is of low rank no more.

    With `shapes`, a message is several tensors one after another, such as all gradients of a network: each of two or
    more dimensions is a matrix with a row for each index of the first dimension, the others travel as they are. All are
    summed together, with the results and in the state that each would have by itself; the message has to have just
    their number of elements. Such a codec is for allreduces, and for messages that are not cut.

    A sum takes two rounds: of p = M q and, when its columns have been made orthonormal, of q = Mᵀ p. Each rank's next q
    starts from the last one under the same key, so that p @ q approaches the best approximation of this rank while the
    tensor changes slowly. A frame by itself, which has nothing to start from, takes two steps at once. Sums and frames
    are exact, up to rounding, for matrices of at most this rank; otherwise the error, in Frobenius norm, is at least
    that of the best approximation, which is the root of the sum of squares of the other singular values, and at most
    that of zero. Results are linear in the operands: summing before or after makes no difference but rounding.

    With feedback, the residual is what lies outside p of the rank's own operand, M - p (Mᵀ p)ᵀ. Its sum over ranks is
    that of the operands minus the result, as it would be for M minus the mean result, which some implementations keep.

    Small matrices, whose factors are not `min_rate` times smaller, and those with a NaN, an infinity, or products that
    overflow, travel as they are; with one of these among the operands, the sum of this matrix is a plain one, which
    takes the next round: the second, or a third if products overflow there. -0.0 may become 0.0.

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
    shapes : tuple of tuple of int, or str
        Shapes of the tensors that a message consists of, in order, instead of `columns`; in specs, and as a string,
        ``256x768/768``. A scalar's shape becomes ``(1,)``.

    Examples
    --------
    >>> PowerSGD(rank=2, columns=768, feedback=True).spec
    'powersgd:rank=2,columns=768,feedback'
    >>> PowerSGD(shapes=((256, 768), (256,))).spec
    'powersgd:shapes=256x768/256'
    """

    codec_id: ClassVar[str] = "powersgd"
    number: ClassVar[int] = 21
    summary: ClassVar[str] = "product of two thin factors, which add without decoding"
    summable: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    on_devices: ClassVar[bool] = True
    later_fields: ClassVar[tuple[str, ...]] = ("shapes",)

    rank: int = 4
    columns: int | None = None
    min_rate: float = 2.0
    seed: int = 0
    feedback: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1)
        if self.columns is not None:
            check_integer("columns", self.columns, 1)
        check_number("min_rate", self.min_rate, 1)
        check_integer("seed", self.seed, 0)
        check_flag("feedback", self.feedback)
        object.__setattr__(self, "shapes", _Shapes.of(self.shapes))
        if self.shapes and self.columns is not None:
            raise ValueError(f"columns: {self.columns!r} beside shapes, which tell the columns of each matrix")

    def for_shapes(self, shapes: Sequence[tuple[int, ...]]) -> PowerSGD:
        """With these `shapes`, unless it has any or `columns`."""
        return self if self.shapes or self.columns is not None else replace(self, shapes=tuple(shapes))

    @cached_property
    def label(self) -> str:
        """Without `shapes`."""
        return replace(self, shapes=()).spec

    @cached_property
    def fixed_count(self) -> int | None:
        """Elements of all `shapes`."""
        return sum(map(math.prod, self.shapes)) if self.shapes else None

    def shape(self, count: int) -> tuple[int, int] | None:
        """Rows and columns of the matrix that `count` elements form; None if they are not compressed."""
        if not count:
            return None
        columns = self.columns or -(-math.isqrt(count) // _COLUMN_STEP) * _COLUMN_STEP
        rows = -(-count // columns)
        return (rows, columns) if self._gains(count, rows, columns) else None

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """The elements as they are; factors are smaller. With `shapes`, also a byte for each matrix."""
        return count * dtype.itemsize + self._flags

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
        """Sum p and what is not compressed, then q; where one is not finite, its matrix in the round after it."""
        factors = yield from self._factors(src, dst, residual, state)
        for piece, pair in factors:
            if pair is not None:
                kernels_for(dst, "powersgd").multiply(*pair, dst[piece.part])

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        state: dict[str, np.ndarray] = {}
        _alone(self._factors(src, None, None, state))
        return self._write(_alone(self._factors(src, None, None, state)), src, payload)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        factors = _alone(self._factors(src, None, residual, state))
        outcome = self._write(factors, src if residual is None else residual, payload)
        if residual is not None:
            for piece, pair in factors:
                if pair is None:
                    residual[piece.part] = 0
        return outcome

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        for piece, values in self._checked(frame):
            if isinstance(values, tuple):
                kernels_for(dst, "powersgd").multiply(*values, dst[piece.part])
            else:
                dst[piece.part] = values

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        for piece, values in self._checked(frame):
            if isinstance(values, tuple):
                _add_product(*values, acc[piece.part])
            else:
                acc[piece.part] += values

    # ------------------------------------------------------------------ what a message consists of

    def _gains(self, count: int, rows: int, columns: int) -> bool:
        return count > self.min_rate * self.rank * (rows + columns)

    def _pieces(self, count: int) -> tuple[_Piece, ...]:
        """What `count` elements consist of; `ValueError` where they are not those of `shapes`."""
        if self.fixed_count is None:
            return (_Piece(slice(0, count), *(self.shape(count) or (0, 0)), "q"),)
        if count != self.fixed_count:
            raise ValueError(f"count: {count} elements, the shapes of {self.codec_id!r} hold {self.fixed_count}")
        return self._shaped

    @cached_property
    def _shaped(self) -> tuple[_Piece, ...]:
        """The pieces of a message of `shapes`; what lies between two matrices is one piece."""
        pieces, start, stop = [], 0, 0
        for i, (rows, *others) in enumerate(self.shapes):
            columns, first = math.prod(others), stop
            stop += rows * columns
            if others and self._gains(stop - first, rows, columns):
                if first > start:
                    pieces.append(_Piece(slice(start, first), 0, 0, ""))
                pieces.append(_Piece(slice(first, stop), rows, columns, f"q{i}"))
                start = stop
        if stop > start or not pieces:
            pieces.append(_Piece(slice(start, stop), 0, 0, ""))
        return tuple(pieces)

    @cached_property
    def _flags(self) -> int:
        """Bytes at the end of a payload that tell which matrices are factors: none where `extra` tells."""
        return sum(piece.columns > 0 for piece in self._shaped) if self.shapes else 0

    # ------------------------------------------------------------------ factors

    def _factors(
        self, src: np.ndarray, dst: np.ndarray | None, residual: np.ndarray | None, state: dict[str, np.ndarray]
    ) -> Generator[tuple[np.ndarray, str], None, list[tuple[_Piece, _Factors | None]]]:
        """One step, in rounds as of `reduction`; each piece with the factors of the sum, or None where it has none.

        These are summed into `dst` instead, or left alone where `dst` is None. Factors are returned where `src` lies;
        rounds are of the host's, which are thin.

        `residual` becomes ``src + residual``, minus this rank's part of the products, and 0 where values were summed.
        """
        kernels = kernels_for(src, "powersgd")
        pieces = self._pieces(src.size)
        x = src if residual is None else residual
        plain = [piece.part for piece in pieces if not piece.columns]
        matrices = [piece for piece in pieces if piece.columns]
        if residual is not None:
            for part in plain:
                residual[part] += src[part]
        sums = () if on_device(x) else (np.empty(4 * kernels.LANES, x.dtype),)
        firsts = _beside([self._first(state, piece, x.dtype) for piece in matrices], x)
        ps, p_of = _stacked([(piece.rows, self.rank) for piece in matrices], x)
        for piece, q, p in zip(matrices, firsts, p_of, strict=True):
            addend = None if residual is None else src[piece.part]
            kernels.project(x[piece.part], addend, q, p, *sums)
        ps, p_of = _on_host(ps, p_of)
        yield from _round(ps, plain, x, dst, residual)

        finite = _finite(ps, p_of)
        plain = [piece.part for piece, good in zip(matrices, finite, strict=True) if not good]
        found = [piece for piece, good in zip(matrices, finite, strict=True) if good]
        p_of = _beside([_orthonormal(p) for p, good in zip(p_of, finite, strict=True) if good], x)
        owns, own_of = _stacked([(self.rank, piece.columns) for piece in found], x)
        for piece, p, own in zip(found, p_of, own_of, strict=True):
            kernels.project_back(x[piece.part], p, own)
        qs, q_of = _on_host(owns, own_of)
        yield from _round(qs, plain, x, dst, residual)

        finite = _finite(qs, q_of)
        plain = [piece.part for piece, good in zip(found, finite, strict=True) if not good]
        yield from _round(qs[:0], plain, x, dst, residual)

        factors: dict[str, _Factors] = {}
        q_there = _beside(q_of, x)
        for piece, p, own, q, there, good in zip(found, p_of, own_of, q_of, q_there, finite, strict=True):
            if good:
                if residual is not None:
                    _add_product(-p, own, residual[piece.part])
                state[piece.name] = self._next(q)
                factors[piece.name] = p, there
        return [(piece, factors.get(piece.name)) for piece in pieces]

    def _first(self, state: dict[str, np.ndarray], piece: _Piece, dtype: np.dtype) -> np.ndarray:
        """The q that a step starts from."""
        q = state.get(piece.name)
        if q is None or q.shape != (self.rank, piece.columns) or q.dtype != dtype:
            return self._start(piece.columns, dtype)
        return q

    def _next(self, q: np.ndarray) -> np.ndarray:
        """The q that the next step starts from: rows of largest magnitude 1.

        Their scale is no matter, but would be squared with every call. A row of zeros would stay one for good.
        """
        peaks = np.abs(q).max(axis=1, keepdims=True)
        if peaks.all():
            return q / peaks
        return np.where(peaks > 0, q / np.where(peaks > 0, peaks, 1), self._start(q.shape[1], q.dtype))

    def _start(self, columns: int, dtype: np.dtype) -> np.ndarray:
        """The first q: uniform in [-1, 1), the same with every version of NumPy."""
        bits = np.random.PCG64(self.seed).random_raw(self.rank * columns)
        return ((bits >> np.uint64(11)) * 2.0**-52 - 1).astype(dtype).reshape(self.rank, columns)

    # ------------------------------------------------------------------ frames

    def _write(
        self, factors: list[tuple[_Piece, _Factors | None]], x: np.ndarray, payload: np.ndarray
    ) -> tuple[int, int]:
        """The payload is, for each piece, p, row by row, and q, row by row, or the elements as they are.

        Which it is for a single matrix, `extra` tells: the rank, or 0 for the elements. With `shapes`, `extra` is the
        rank and a byte for each matrix follows: 1 for factors, 0 for the elements.
        """
        values = payload[: x.nbytes].view(x.dtype)
        at = 0
        for piece, pair in factors:
            for array in (x[piece.part],) if pair is None else pair:
                values[at : at + array.size] = array.ravel()
                at += array.size
        nbytes = at * x.itemsize
        flags = [pair is not None for piece, pair in factors if piece.columns]
        if not self.shapes:
            return nbytes, self.rank * any(flags)
        payload[nbytes : nbytes + len(flags)] = like(np.array(flags, np.uint8), payload)
        return nbytes + len(flags), self.rank

    def _checked(self, frame: Frame) -> Iterator[tuple[_Piece, np.ndarray | _Factors]]:
        """Each piece with its values or factors, when all sizes have been found right."""
        dtype = working_dtype(frame.dtype)
        try:
            pieces = self._pieces(frame.count)
        except ValueError as error:
            raise FrameError(str(error)) from None
        flags = iter(self._checked_flags(frame, pieces))
        compressed = [piece.columns > 0 and next(flags) for piece in pieces]
        shapes: list[tuple[int, ...]] = []
        for piece, has_factors in zip(pieces, compressed, strict=True):
            size = piece.part.stop - piece.part.start
            shapes += [(piece.rows, self.rank), (self.rank, piece.columns)] if has_factors else [(size,)]
        nbytes = sum(map(math.prod, shapes)) * dtype.itemsize
        frame.check_nbytes(nbytes + self._flags)
        arrays = iter(_split(frame.payload[:nbytes].view(dtype), shapes))
        for piece, has_factors in zip(pieces, compressed, strict=True):
            yield piece, (next(arrays), next(arrays)) if has_factors else next(arrays)

    def _checked_flags(self, frame: Frame, pieces: tuple[_Piece, ...]) -> list[bool]:
        """For each matrix, whether its factors stand in the payload."""
        if not self.shapes:
            if frame.extra and (not pieces[0].columns or frame.extra != self.rank):
                expected = self.rank if pieces[0].columns else "none"
                raise FrameError(f"frame: factors of rank {frame.extra}, expected {expected}")
            return [bool(frame.extra)]
        if frame.extra != self.rank:
            raise FrameError(f"frame: factors of rank {frame.extra}, expected {self.rank}")
        if frame.payload.size < self._flags:
            raise FrameError(f"frame: {frame.payload.size} payload bytes for {self._flags} matrices")
        flags = host_copy(frame.payload[frame.payload.size - self._flags :]).tolist()
        if not set(flags) <= {0, 1}:
            raise FrameError(f"frame: a matrix is marked {max(flags)}, expected 0 or 1")
        return [bool(flag) for flag in flags]


def _alone(rounds: Generator[Any, None, _Outcome]) -> _Outcome:
    """The outcome of `rounds` for one rank by itself, for which they change nothing."""
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            return end.value


def _round(
    factors: np.ndarray, plain: list[slice], x: np.ndarray, dst: np.ndarray | None, residual: np.ndarray | None
) -> Iterator[tuple[np.ndarray, str]]:
    """A round of the flat `factors`, and of the `plain` parts of `x`, whose sums go to `dst`; they leave no residual.

    There is no round for nothing, and none of plain parts without a `dst`.
    """
    if dst is None or not plain:
        if factors.size:
            yield factors, "sum"
        return
    if len(plain) == 1 and not factors.size:
        array = dst[plain[0]]
        array[...] = x[plain[0]]
        yield array, "sum"
    else:
        values = [x[part] for part in plain]
        array = np.concatenate([factors, *([host_copy(np.concatenate(values))] if on_device(x) else values)])
        yield array, "sum"
        factors[...] = array[: factors.size]
        totals = _split(like(array[factors.size :], x), [value.shape for value in values])
        for part, total in zip(plain, totals, strict=True):
            dst[part] = total
    if residual is not None:
        for part in plain:
            residual[part] = 0


def _stacked(shapes: list[tuple[int, int]], beside: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Memory like that of `beside` for arrays of these shapes one after another: flat, and each of them."""
    flat = empty(sum(map(math.prod, shapes)), beside.dtype, beside)
    return flat, _split(flat, shapes)


def _split(flat: np.ndarray, shapes: Iterable[tuple[int, ...]]) -> list[np.ndarray]:
    arrays, at = [], 0
    for shape in shapes:
        size = math.prod(shape)
        arrays.append(flat[at : at + size].reshape(shape))
        at += size
    return arrays


def _on_host(flat: np.ndarray, arrays: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """A copy of the `arrays`, which make up `flat`: flat, and each of them."""
    copy = host_copy(flat)
    return copy, _split(copy, [array.shape for array in arrays])


def _beside(arrays: list[np.ndarray], other: np.ndarray) -> list[np.ndarray]:
    """The host's `arrays` where `other` lies: themselves, or copies on the device, which are copied as one."""
    if not arrays or not on_device(other):
        return arrays
    return _split(like(np.concatenate([array.ravel() for array in arrays]), other), [array.shape for array in arrays])


def _finite(flat: np.ndarray, arrays: list[np.ndarray]) -> list[bool]:
    """Which of the `arrays`, which make up `flat`, are finite."""
    if np.isfinite(flat).all():
        return [True] * len(arrays)
    return [bool(np.isfinite(array).all()) for array in arrays]


def _orthonormal(p: np.ndarray) -> np.ndarray:
    """`p` with orthonormal columns; one that depends on those before it becomes zero."""
    columns = p.astype(np.float64)
    cpu.load("powersgd").orthonormalise(columns, np.empty(p.shape[1]))
    return columns.astype(p.dtype)


def _add_product(p: np.ndarray, q: np.ndarray, acc: np.ndarray) -> None:
    kernels = kernels_for(acc, "powersgd")
    kernels.multiply_add(p, q, acc, *(() if on_device(acc) else (np.empty(kernels.TILE, acc.dtype),)))
