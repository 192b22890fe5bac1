"""How many sums are correctly rounded: of each program of the switch, and of ranks that add float32 one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from collcomp.errors import CollcompError
from collcomp.switch.model import SwitchModel
from collcomp.switch.programs import PROGRAMS

__all__ = ["Share", "shares"]

_ELEMENTS = 1 << 15
_SCALE = 0.01
# All float32 are multiples of 2 to minus this; bits that rounding to float32 needs, and a few more.
_FRACTION_BITS, _GUARD_BITS = 149, 40


@dataclass(frozen=True)
class Share:
    """One row.

    Attributes
    ----------
    how : str
        A program, or "sequential float32".
    ranks : int
    share : float
        Of the elements that are equal to the correctly rounded sum, in every bit.
    largest_ulps : float
        Largest error, in units of the last place of the right sum.
    """

    how: str
    ranks: int
    share: float
    largest_ulps: float


def shares(ranks: Sequence[int]) -> Iterator[Share]:
    """Sum Student-t values (3 degrees of freedom) x 0.01, as gradients have such tails, in every way.

    Programs that take fewer ranks are left out.
    """
    for size in ranks:
        draws = np.random.default_rng(size)
        operands = [(draws.standard_t(3, _ELEMENTS) * _SCALE).astype(np.float32) for _ in range(size)]
        right = _rounded(operands)
        for program in PROGRAMS.values():
            if program.most_workers is not None and size > program.most_workers:
                continue
            result = SwitchModel(size, program).allreduce(operands).results[0]
            if not isinstance(result, np.ndarray):
                raise CollcompError(f"program {program.name} failed: {result}")
            yield _compare(program.name, size, result, right)
        total = operands[0].copy()
        for operand in operands[1:]:
            total += operand
        yield _compare("sequential float32", size, total, right)


def _rounded(operands: Sequence[np.ndarray]) -> np.ndarray:
    """The correctly rounded sums, by way of Python's integers."""
    columns = zip(*(operand.tolist() for operand in operands), strict=True)
    return np.array([_nearest(sum(int(math.ldexp(x, _FRACTION_BITS)) for x in column)) for column in columns])


def _nearest(total: int) -> np.float32:
    """``total / 2**_FRACTION_BITS`` in float32: rounded to odd in more bits than it has, then to nearest."""
    dropped = max(total.bit_length() - _GUARD_BITS, 0)
    kept = total >> dropped
    if kept << dropped != total:
        kept |= 1
    return np.float32(math.ldexp(kept, dropped - _FRACTION_BITS))


def _compare(how: str, ranks: int, result: np.ndarray, right: np.ndarray) -> Share:
    error = np.abs(result.astype(np.float64) - right) / np.spacing(np.abs(right))
    same = result.view(np.uint32) == right.view(np.uint32)
    return Share(how, ranks, float(np.mean(same)), float(error.max()))
