"""What a result must be: a float64 reference, and how far a codec may be from it.

Dense codecs are compared with the exact result, within an error that follows from the magnitudes of all operands.
Sparse codecs drop elements, so that no small error bounds them: there the codec itself is applied to each rank's
operand, and the result must be equal in every element.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from collcomp.codecs import Codec
from collcomp.collectives import HIERARCHICAL, SWITCHED
from collcomp.collectives.direct import chunks
from collcomp.collectives.hierarchical import pieces
from collcomp.frame import Frame

from .message import values

__all__ = [
    "Check",
    "Verdict",
    "can_check",
    "check_moved",
    "check_sum",
    "differing",
    "error_bound",
    "judge",
    "roundtrip",
    "sparse_sum",
]

_PIECE = 1 << 19
_HALF_ULP = 2.0**-24
#: Algorithms and programs that go through a summable codec's own rounds.
_IN_ROUNDS = ("summed", SWITCHED)
#: Largest step of a switch's fixed point, by program, where the sum of the magnitudes is at most so large.
_FIXED_POINT = {"switchml": lambda largest: 2 * largest * 2.0**-31, "atp": lambda largest: 1e-6}


class Check(NamedTuple):
    """Some elements of a result, what they should be, and by how much they may differ."""

    got: np.ndarray
    expected: np.ndarray
    tolerance: np.ndarray | float


class Verdict(NamedTuple):
    """Largest error, and number of elements whose error is beyond its bound."""

    max_err: float
    wrong: int


def judge(checks: Iterable[Check]) -> Verdict:
    """Count what is wrong. A NaN where there should be a number is."""
    max_err, wrong = 0.0, 0
    for got, expected, tolerance in checks:
        error = np.abs(got - expected)
        wrong += int(np.count_nonzero(~(error <= tolerance)))
        if error.size:
            max_err = max(max_err, float(np.nan_to_num(error.max(), nan=np.inf)))
    return Verdict(max_err, wrong)


def differing(comm: Any, result: np.ndarray) -> int:
    """Number of elements of this rank's `result` whose bits differ from rank 0's. Collective."""
    if len(set(comm.allgather(zlib.crc32(result.data)))) == 1:
        return 0
    first = result.copy()
    comm.Bcast(first, 0)
    return int(np.count_nonzero(first.view(np.uint32) != result.view(np.uint32)))


def can_check(codec: Codec) -> bool:
    """Whether it is known what results may be: not if a codec draws its selection, or tells no bound."""
    return not codec.summable if codec.sparse else codec.error_bound(np.ones(1)) is not None


def error_bound(codec: Codec, magnitudes: np.ndarray) -> np.ndarray:
    """Largest error that encoding may make in each element.

    Parameters
    ----------
    codec : Codec
    magnitudes : ndarray of float64
        Upper bounds of the elements' magnitudes, in the order in which they are encoded. Elements nearer to an end
        than two blocks get too small a bound unless the message ends there as well.

    Returns
    -------
    ndarray of float64
        Sound wherever the codec's blocks begin.
    """
    if codec.whole:
        peaks = np.full_like(magnitudes, magnitudes.max(initial=0))
    else:
        peaks = _largest_nearby(magnitudes, codec.block)
    bound = codec.error_bound(peaks)
    assert bound is not None, "checked by can_check"
    return bound


def _largest_nearby(x: np.ndarray, block: int) -> np.ndarray:
    """An upper bound of the maximum of any `block` neighbours that each element is among."""
    count = -(-x.size // block)
    padded = np.zeros((count + 2) * block)
    padded[block : block + x.size] = x
    maxima = padded.reshape(-1, block).max(axis=1)
    nearby = np.maximum(np.maximum(maxima[:-2], maxima[1:-1]), maxima[2:])
    return np.repeat(nearby, block)[: x.size]


def check_moved(got: np.ndarray, codec: Codec, source: int, part: slice, *, encoded: bool = True) -> Iterator[Check]:
    """Check a copy of elements `part` of the message of rank `source`, which were encoded together (or not at all)."""
    if not encoded or codec.lossless:
        yield Check(got, values(source, part.start, part.stop).astype(np.float64), 0.0)
    elif codec.sparse:
        yield Check(got, roundtrip(codec, values(source, part.start, part.stop)).astype(np.float64), 0.0)
    else:
        for piece, wide in _pieces(part, part, 2 * codec.block):
            x = values(source, wide.start, wide.stop).astype(np.float64)
            inner = slice(piece.start - wide.start, piece.stop - wide.start)
            tolerance = error_bound(codec, np.abs(x))
            yield Check(got[piece.start - part.start : piece.stop - part.start], x[inner], tolerance[inner])


def check_sum(
    got: np.ndarray,
    codec: Codec,
    algorithm: str,
    size: int,
    count: int,
    part: slice,
    groups: Sequence[Sequence[int]] = (),
    *,
    reencoded: Iterable[int],
) -> Iterator[Check]:
    """Check elements `part` of the sum over `size` ranks of messages of `count` elements.

    `groups` are those whose sums are encoded, single ranks by default; `reencoded` are the ranks that encode the part
    that they have summed; `algorithm` may be a switch's program, too.
    """
    groups = groups or [[rank] for rank in range(size)]
    rounds = codec.summable and algorithm in _IN_ROUNDS
    if codec.sparse and not rounds:
        expected = sparse_sum(codec, algorithm, size, count, groups, reencoded=reencoded)
        yield Check(got, expected[part].astype(np.float64), 0.0)
        return
    if rounds or codec.whole:
        yield from _check_whole(got, codec, algorithm, size, count, part, groups, reencoded)
        return
    halo = 2 * (size + 1) * codec.block
    for piece, wide in _pieces(part, slice(0, count), halo):
        total, magnitude, error = np.zeros((3, wide.stop - wide.start))
        for group in groups:
            of_group, magnitude_of_group = np.zeros((2, wide.stop - wide.start))
            for rank in group:
                x = values(rank, wide.start, wide.stop).astype(np.float64)
                of_group += x
                magnitude_of_group += np.abs(x)
            total += of_group
            magnitude += magnitude_of_group
            rounded = len(group) * _HALF_ULP * magnitude_of_group if len(group) > 1 else 0.0
            error += rounded + error_bound(codec, np.abs(of_group) + rounded)
        if algorithm == "ring":  # partial sums are encoded anew at each hop, wherever the ring begins
            error[:] = 0
            for _ in range(size):
                error += error_bound(codec, magnitude + error)
        elif algorithm in ("direct", HIERARCHICAL) and reencoded:
            error += error_bound(codec, np.abs(total) + error)
        if algorithm == SWITCHED:
            error += _HALF_ULP * (1 + _HALF_ULP) * np.abs(total)  # rounded once, and here twice
        elif algorithm in _FIXED_POINT:
            error += size * _FIXED_POINT[algorithm](size * magnitude.max(initial=0)) + 2 * _HALF_ULP * magnitude
        else:
            error += size * _HALF_ULP * (magnitude + error)
        inner = slice(piece.start - wide.start, piece.stop - wide.start)
        yield Check(got[piece.start - part.start : piece.stop - part.start], total[inner], error[inner])


def _check_whole(
    got: np.ndarray,
    codec: Codec,
    algorithm: str,
    size: int,
    count: int,
    part: slice,
    groups: Sequence[Sequence[int]],
    reencoded: Iterable[int],
) -> Iterator[Check]:
    """`check_sum` where one number, the largest magnitude of all operands, tells every element's bound."""
    peak = max(float(np.abs(values(rank, 0, count)).max(initial=0)) for rank in range(size))
    largest = max(map(len, groups)) * peak
    operand = codec.error_bound(np.array([largest]), size if algorithm in _IN_ROUNDS else 1)
    result = codec.error_bound(np.array([2 * size * peak]))
    assert operand is not None, "checked by can_check"
    assert result is not None
    error = len(groups) * float(operand[0]) + size * 4 * _HALF_ULP * size * peak
    if algorithm == "ring":
        error += size * float(result[0])
    elif algorithm in ("direct", HIERARCHICAL) and reencoded:
        error += float(result[0])
    for piece, _ in _pieces(part, part, 0):
        total = sum(values(rank, piece.start, piece.stop).astype(np.float64) for rank in range(size))
        yield Check(got[piece.start - part.start : piece.stop - part.start], np.asarray(total), error)


def sparse_sum(
    codec: Codec,
    algorithm: str,
    size: int,
    count: int,
    groups: Sequence[Sequence[int]] = (),
    *,
    reencoded: Iterable[int],
) -> np.ndarray:
    """The very bits that `algorithm` gives with a sparse codec, whose frames hold a whole part each."""
    operands = [values(rank, 0, count) for rank in range(size)]
    if algorithm in ("gathered", "merged"):
        return _in_order([roundtrip(codec, x) for x in operands])
    result = np.empty(count, np.float32)
    if algorithm == HIERARCHICAL:
        for owner, part in pieces(count, groups, codec.block).items():
            result[part] = roundtrip(codec, _sum_of_groups(codec, [x[part] for x in operands], groups, owner))
        return result
    for owner, part in enumerate(chunks(count, size, codec.block)):
        if algorithm == "ring":
            partial = roundtrip(codec, operands[(owner + 1) % size][part])
            for step in range(2, size + 1):
                partial = roundtrip(codec, partial + operands[(owner + step) % size][part])
            result[part] = partial
            continue
        mine = _in_order([x[part] if rank == owner else roundtrip(codec, x[part]) for rank, x in enumerate(operands)])
        result[part] = roundtrip(codec, mine) if owner in reencoded else mine
    return result


def _sum_of_groups(
    codec: Codec, operands: Sequence[np.ndarray], groups: Sequence[Sequence[int]], owner: int
) -> np.ndarray:
    """What the owner of a piece has before it encodes it."""
    column = next(column for column in zip(*groups, strict=True) if owner in column)
    sums = {}
    for rank, group in zip(column, groups, strict=True):
        of_group = _in_order([operands[member] for member in sorted(group)])
        sums[rank] = of_group if rank == owner else roundtrip(codec, of_group)
    return _in_order([sums[rank] for rank in sorted(sums)])


def roundtrip(codec: Codec, x: np.ndarray) -> np.ndarray:
    """What a receiver of `x` decodes."""
    frame = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    decoded = np.empty_like(x)
    codec.decode(Frame.read(frame[: codec.encode(x, frame)]), decoded)
    return decoded


def _in_order(operands: list[np.ndarray]) -> np.ndarray:
    total = operands[0].copy()
    for x in operands[1:]:
        total += x
    return total


def _pieces(part: slice, limits: slice, halo: int) -> Iterator[tuple[slice, slice]]:
    """`part` piece by piece, and each with `halo` elements more on both sides as far as `limits` go."""
    for start in range(part.start, part.stop, _PIECE):
        stop = min(start + _PIECE, part.stop)
        yield slice(start, stop), slice(max(limits.start, start - halo), min(limits.stop, stop + halo))
