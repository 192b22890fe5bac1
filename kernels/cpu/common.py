"""What kernels of several families have in common: magnitudes, norms, copies, keys of random streams."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from collcomp.kernels.cpu.bits import magnitude
from collcomp.kernels.cpu.jit import INLINED, inlined
from collcomp.kernels.cpu.vectors import element_pointer, load, same, undefined

__all__ = [
    "LARGEST",
    "SMALLEST",
    "accumulate",
    "copy",
    "largest_magnitude",
    "random32",
    "random32_or_none",
    "sum_of_squares",
]

#: Magnitudes between them have float32 scales that are normal numbers.
SMALLEST, LARGEST = 2.0**-119, 2.0**127


@inlined
def largest_magnitude(x):
    """The largest `magnitude` in `x`, which has at least one element."""
    largest = magnitude(x[0])
    for i in range(x.size):
        largest = max(largest, magnitude(x[i]))
    return largest


@inlined
def accumulate(x, y):
    """``y += x``, and the largest magnitude of the sums."""
    largest = magnitude(y[0] + x[0])
    for i in range(x.size):
        total = x[i] + y[i]
        y[i] = total
        largest = max(largest, magnitude(total))
    return largest


@inlined
def copy(x, y):
    """``y[: x.size] = x``."""
    for i in range(x.size):
        y[i] = x[i]


@inlined
def random32(key, index):
    """The uint32 at place `index` of random stream `key` (SplitMix64)."""
    z = np.uint64(key) + np.uint64(index) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint32(z >> np.uint64(32))


def random32_or_none(key, index):
    """`random32`, or None where `key` is None: rounding to nearest."""
    raise NotImplementedError


@overload(random32_or_none, jit_options=INLINED)
def _random32_or_none_overload(key, index):
    if key == types.none:
        return lambda key, index: None
    return lambda key, index: random32(key, index)


_I32, _I64, _F32, _F64 = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_LANES, _CHAINS = 16, 4
#: Elements that `_squares` takes at once.
_STRIDE = _LANES * _CHAINS


@intrinsic
def _squares(typing_context, x, strides):
    """Sum of the squares of the first ``64 * strides`` elements of `x`, in float64."""
    element = _F32 if x.dtype == types.float32 else _F64

    def generate(context, builder, signature, args):
        zero = same(_F64, _LANES, 0.0)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(_CHAINS)]
        with cgutils.for_range(builder, args[1]) as loop:
            start = builder.mul(loop.index, ir.Constant(_I64, _STRIDE))
            for chain, total in enumerate(sums):
                place = builder.add(start, ir.Constant(_I64, chain * _LANES))
                values = load(builder, element_pointer(context, builder, x, args[0], place), element, _LANES)
                if element is _F32:
                    values = builder.fpext(values, zero.type)
                builder.store(builder.fadd(builder.load(total), builder.fmul(values, values)), total)
        lanes = [builder.load(total) for total in sums]
        while len(lanes) > 1:
            lanes = [builder.fadd(a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
        for distance in (8, 4, 2, 1):
            partners = ir.Constant(ir.VectorType(_I32, _LANES), [i ^ distance for i in range(_LANES)])
            lanes[0] = builder.fadd(lanes[0], builder.shuffle_vector(lanes[0], undefined(_F64, _LANES), partners))
        return builder.extract_element(lanes[0], ir.Constant(_I32, 0))

    return types.float64(x, types.int64), generate


@inlined
def sum_of_squares(x):
    """In float64, with the additions in an order that does not depend on the CPU."""
    strides = x.size // _STRIDE
    total = _squares(x, strides)
    for i in range(strides * _STRIDE, x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total
