"""Differences of the neighbours in a block of integers, and back to the integers.

Arithmetic wraps around at 32 bits: what was written comes back exactly, and any bits are read without harm.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from collcomp.kernels.cpu.packing import BLOCK
from collcomp.kernels.cpu.vectors import element_pointer, load, same, splat, store

__all__ = ["differences", "prefix_sum", "width_of"]

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
#: Integers in one register.
_LANES = 16


def _c32(value: int) -> ir.Constant:
    return ir.Constant(_I32, value)


def _shuffle(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _any_lane(builder: Any, vector: Any) -> Any:
    """The union of the bits of all lanes."""
    lanes = _LANES
    while lanes > 1:
        lanes //= 2
        low = _shuffle(builder, vector, vector, list(range(lanes)))
        high = _shuffle(builder, vector, vector, list(range(lanes, 2 * lanes)))
        vector = builder.or_(low, high)
    return builder.extract_element(vector, _c32(0))


def _rows(context: Any, builder: Any, array_type: Any, array: Any) -> list[Any]:
    """Pointers to each 16 of the first `BLOCK` elements of an array."""
    first = element_pointer(context, builder, array_type, array, ir.Constant(_I64, 0))
    return [builder.gep(first, [ir.Constant(_I64, start)]) for start in range(0, BLOCK, _LANES)]


@intrinsic
def width_of(typing_context, mask):
    """Bits that integers need in two's complement, `mask` being the union of their ``x ^ (x << 1)``."""

    def generate(context, builder, signature, args):
        return builder.zext(builder.sub(_c32(32), builder.ctlz(args[0], ir.Constant(_I1, 0))), _I64)

    return types.int64(types.int32), generate


@intrinsic
def differences(typing_context, x, before, y):
    """``y[i] = x[i] - x[i - 1]`` for the first `BLOCK` elements, with `before` for ``x[-1]``; returns their mask."""

    def generate(context, builder, signature, args):
        sources = _rows(context, builder, signature.args[0], args[0])
        targets = _rows(context, builder, signature.args[2], args[2])
        one, mask = same(_I32, _LANES, 1), same(_I32, _LANES, 0)
        previous = splat(builder, args[1], _LANES)
        for source, target in zip(sources, targets, strict=True):
            values = load(builder, source, _I32, _LANES)
            shifted = _shuffle(builder, previous, values, [_LANES - 1 + i for i in range(_LANES)])
            step = builder.sub(values, shifted)
            mask = builder.or_(mask, builder.xor(step, builder.shl(step, one)))
            store(builder, step, target)
            previous = values
        return _any_lane(builder, mask)

    return types.int32(x, types.int32, y), generate


@intrinsic
def prefix_sum(typing_context, x, before):
    """Undo `differences` in place; returns the last sum.

    The sums of 16 neighbours are formed in a register, by adding it to itself shifted by 1, 2, 4 and 8.
    """

    def generate(context, builder, signature, args):
        zero = same(_I32, _LANES, 0)
        carry = splat(builder, args[1], _LANES)
        for place in _rows(context, builder, signature.args[0], args[0]):
            sums = load(builder, place, _I32, _LANES)
            for shift in (1, 2, 4, 8):
                lanes = [i - shift if i >= shift else _LANES for i in range(_LANES)]
                sums = builder.add(sums, _shuffle(builder, sums, zero, lanes))
            store(builder, builder.add(sums, carry), place)
            # One addition from row to row: the rows wait for nothing else of each other.
            carry = builder.add(carry, _shuffle(builder, sums, zero, [_LANES - 1] * _LANES))
        return builder.extract_element(carry, _c32(0))

    return types.int32(x, types.int32), generate
