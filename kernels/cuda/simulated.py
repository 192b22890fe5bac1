"""`primitives` for numba's simulator, which has no warps: lanes leave their values where the others find them."""

import functools
import operator

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.jit import LANES, THREADS, inlined

__all__ = [
    "bit_length",
    "bits_of",
    "float_of",
    "lane_sums_before",
    "largest_of_lanes",
    "meet",
    "product",
    "product32",
    "rint",
    "smallest_of_lanes",
    "sum_by_halves",
    "sum_of_half_by_halves",
    "union_of_lanes",
    "value_of_lane",
    "votes",
]

_TWINS = {np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}
_TWIN_OF = {np.dtype(twin): kind.type for kind, twin in _TWINS.items()}


@inlined
def bit_length(x):
    return int(x).bit_length()


@inlined
def bits_of(x):
    return x.view(_TWINS[x.dtype])


@inlined
def float_of(bits):
    return bits.view(_TWIN_OF[bits.dtype])


@inlined
def product(a, b):
    return a * b


@inlined
def rint(x):
    return np.rint(x)


# The simulator runs one thread block at a time. Its own shared memory would cost a look at the stack each time.
_BOX = [None] * THREADS


@inlined
def product32(a, b):
    return a * b


@inlined
def _lanes(value):
    """The values of all lanes of this warp."""
    me = cuda.threadIdx.x
    first = me - me % LANES
    _BOX[me] = value
    cuda.syncthreads()
    values = _BOX[first : first + LANES]
    cuda.syncthreads()
    return values


@inlined
def largest_of_lanes(value):
    return max(_lanes(value))


@inlined
def smallest_of_lanes(value):
    return min(_lanes(value))


@inlined
def sum_by_halves(value):
    return _by_halves(_lanes(value))


@inlined
def sum_of_half_by_halves(value):
    values, half = _lanes(value), LANES // 2
    return _by_halves(values[half:] if cuda.laneid >= half else values[:half])


def _by_halves(values):
    while len(values) > 1:
        half = len(values) // 2
        values = [values[i] + values[half + i] for i in range(half)]
    return values[0]


@inlined
def union_of_lanes(bits):
    return functools.reduce(operator.or_, _lanes(bits))


@inlined
def value_of_lane(value, lane):
    return _lanes(value)[lane]


@inlined
def votes(condition):
    return np.uint32(sum(bool(vote) << lane for lane, vote in enumerate(_lanes(condition))))


@inlined
def lane_sums_before(value):
    values = _lanes(value)
    return sum(values[: cuda.laneid], type(value)(0)), sum(values, type(value)(0))


@inlined
def meet():
    cuda.syncthreads()
