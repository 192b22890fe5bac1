"""The randomised Walsh-Hadamard transform: spreads every value of a block over all of them, and back.

A block x of n elements (a power of two, at least 256) becomes ``H (d * x)``, where H is the n x n Hadamard matrix in
its natural order and d a diagonal of random signs times ``1 / sqrt(n)``, which makes it a rotation. ``d * (H y)``
undoes it.

256 values are transformed in the registers, as 16 vectors of 16 lanes, in generic LLVM IR; blocks larger than that are
put together in the cache. The order of the additions is fixed: results are the same bits on every CPU.

A block with a magnitude of `LIMIT` or more (NaN counts) is *plain*: it stays as it is, so that neither NaN nor infinity
spreads over the block, and nothing overflows. Bit b % 8 of byte b // 8 of `plain` says so of block b.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from collcomp.kernels.cpu.bits import from_magnitude
from collcomp.kernels.cpu.common import accumulate, copy
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.vectors import element_pointer, load, store, undefined

__all__ = [
    "LIMIT",
    "SMALLEST",
    "rotate",
    "rotate_block",
    "unrotate",
    "unrotate_add",
    "unrotate_block",
    "unrotate_subtract",
]

#: The smallest block.
SMALLEST = 256
#: Sums of 2**16 magnitudes below it, twice over, stay finite.
LIMIT = 2.0**90

_LANES = _ROWS = 16
_I32, _I64 = ir.IntType(32), ir.IntType(64)
#: numba's float type -> LLVM's, that of its bits, and the mask that clears the sign.
_KINDS = {
    types.float32: (ir.FloatType(), _I32, 0x7FFFFFFF),
    types.float64: (ir.DoubleType(), _I64, 0x7FFFFFFFFFFFFFFF),
}


def _within_vector(builder, vector, element):
    """The stages that combine lanes of one vector: lane i with lane i ^ 1, 2, 4, 8.

    Multiplying by a sign is exact, so it may be fused with the addition: the bits are the same.
    """
    kind = ir.FunctionType(vector.type, [vector.type] * 3)
    name = f"llvm.fmuladd.v{_LANES}{element.intrinsic_name}"
    multiply_add = cgutils.get_or_insert_function(builder.module, kind, name)
    for distance in (1, 2, 4, 8):
        partners = ir.Constant(ir.VectorType(_I32, _LANES), [i ^ distance for i in range(_LANES)])
        signs = ir.Constant(vector.type, [-1.0 if i & distance else 1.0 for i in range(_LANES)])
        partner = builder.shuffle_vector(vector, undefined(element, _LANES), partners)
        vector = builder.call(multiply_add, [vector, signs, partner])
    return vector


def _largest(builder, rows, bits, mask):
    """The largest `magnitude` in the vectors."""
    vector = ir.VectorType(bits, _LANES)

    def larger(a, b):
        return builder.select(builder.icmp_signed(">", a, b), a, b)

    lanes = [builder.and_(builder.bitcast(row, vector), ir.Constant(vector, [mask] * _LANES)) for row in rows]
    while len(lanes) > 1:
        lanes = [larger(a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
    for distance in (8, 4, 2, 1):
        partners = ir.Constant(ir.VectorType(_I32, _LANES), [i ^ distance for i in range(_LANES)])
        lanes[0] = larger(lanes[0], builder.shuffle_vector(lanes[0], undefined(bits, _LANES), partners))
    return builder.extract_element(lanes[0], ir.Constant(_I32, 0))


def _between_vectors(builder, rows):
    """The stages that combine whole vectors: number i with number i ^ 1, 2, 4, ..."""
    distance = 1
    while distance < len(rows):
        for low in range(len(rows)):
            if not low & distance:
                a, b = rows[low], rows[low + distance]
                rows[low], rows[low + distance] = builder.fadd(a, b), builder.fsub(a, b)
        distance *= 2


@intrinsic
def _transform256(typing_context, x, i, factors, y, j):
    """``y[j : j + 256] = H (factors[j : j + 256] * x[i : i + 256])``, and the largest `magnitude` in x.

    No factors where they are None.
    """
    element, bits, mask = _KINDS[y.dtype]

    def generate(context, builder, signature, args):
        def pointers(number, start):
            first = element_pointer(context, builder, signature.args[number], args[number], start)
            return [builder.gep(first, [ir.Constant(_I64, row * _LANES)]) for row in range(_ROWS)]

        rows = [load(builder, pointer, element, _LANES) for pointer in pointers(0, args[1])]
        largest = _largest(builder, rows, bits, mask)
        if not isinstance(factors, types.NoneType):
            pairs = zip(rows, pointers(2, args[4]), strict=True)
            rows = [builder.fmul(row, load(builder, pointer, element, _LANES)) for row, pointer in pairs]
        rows = [_within_vector(builder, row, element) for row in rows]
        _between_vectors(builder, rows)
        for row, pointer in zip(rows, pointers(3, args[4]), strict=True):
            store(builder, row, pointer)
        return largest

    result = types.int32 if y.dtype == types.float32 else types.int64
    return result(x, types.int64, factors, y, types.int64), generate


def _combiner(count):
    """The function that combines the `count` vectors of 16 that begin at y[i], y[i + size], ..."""

    @intrinsic
    def combine(typing_context, y, i, size):
        element = _KINDS[y.dtype][0]

        def generate(context, builder, signature, args):
            pointers = [element_pointer(context, builder, y, args[0], args[1])]
            for _ in range(count - 1):
                pointers.append(builder.gep(pointers[-1], [args[2]]))
            rows = [load(builder, pointer, element, _LANES) for pointer in pointers]
            _between_vectors(builder, rows)
            for row, pointer in zip(rows, pointers, strict=True):
                store(builder, row, pointer)
            return context.get_dummy_value()

        return types.void(y, types.int64, types.int64), generate

    return combine


_combine2, _combine4, _combine8, _combine16 = (_combiner(count) for count in (2, 4, 8, 16))


@inlined
def _combine(y, size):
    """Put transforms of `size` elements together to that of all of `y`, up to 16 at once."""
    while size < y.size:
        count = min(16, y.size // size)
        for start in range(0, y.size, count * size):
            if count == 2:
                for i in range(start, start + size, _LANES):
                    _combine2(y, i, size)
            elif count == 4:
                for i in range(start, start + size, _LANES):
                    _combine4(y, i, size)
            elif count == 8:
                for i in range(start, start + size, _LANES):
                    _combine8(y, i, size)
            else:
                for i in range(start, start + size, _LANES):
                    _combine16(y, i, size)
        size *= count


@inlined
def rotate_block(x, diagonal, y):
    """Rotate `x`, zeros added where it is shorter than the others, into `y`; whether it could be: if not, a copy."""
    z = x
    if x.size < y.size:
        copy(x, y)
        y[x.size :] = 0
        z = y
    largest = _transform256(z, 0, diagonal, y, 0)
    for i in range(SMALLEST, y.size, SMALLEST):
        largest = max(largest, _transform256(z, i, diagonal, y, i))
    if from_magnitude(largest) < LIMIT:
        _combine(y, SMALLEST)
        return True
    copy(x, y)
    y[x.size :] = 0
    return False


@inlined
def unrotate_block(y, diagonal):
    """Undo `rotate_block`, in place."""
    for i in range(0, y.size, SMALLEST):
        _transform256(y, i, None, y, i)
    _combine(y, SMALLEST)
    for i in range(y.size):
        y[i] *= diagonal[i]


@kernel
def rotate(src, residual, diagonal, dst, plain):
    """Rotate the blocks of `src` into `dst`, which is longer where the last one is not whole, and clear or set `plain`.

    Blocks are as long as `diagonal`, zeros are added to the last; `plain` is of uint8, one bit a block. Unless it is
    None, `src` is added to `residual` first, which is then rotated.
    """
    size = diagonal.size
    plain[:] = 0
    for b in range(dst.size // size):
        x = src[b * size : b * size + size]
        if residual is not None:
            y = residual[b * size : b * size + size]
            accumulate(x, y)
            x = y
        if not rotate_block(x, diagonal, dst[b * size : b * size + size]):
            plain[b // 8] |= 1 << (b % 8)


@inlined
def _unrotate_or_keep(y, diagonal, plain, b):
    if not plain[b // 8] >> (b % 8) & 1:
        unrotate_block(y, diagonal)


@kernel
def unrotate(y, diagonal, plain):
    """Undo `rotate`, in place."""
    size = diagonal.size
    for b in range(y.size // size):
        _unrotate_or_keep(y[b * size : b * size + size], diagonal, plain, b)


@kernel
def unrotate_add(src, diagonal, plain, acc):
    """Undo `rotate`, in place, and add the values to `acc`, without those that were added to the last block."""
    size = diagonal.size
    for b in range(src.size // size):
        x, y = src[b * size : b * size + size], acc[b * size : b * size + size]
        _unrotate_or_keep(x, diagonal, plain, b)
        for i in range(y.size):
            y[i] += x[i]


@kernel
def unrotate_subtract(src, diagonal, plain, residual):
    """Undo `rotate`, in place, and leave in `residual` what differs, or 0 where that value is not finite."""
    size = diagonal.size
    for b in range(src.size // size):
        x, y = src[b * size : b * size + size], residual[b * size : b * size + size]
        _unrotate_or_keep(x, diagonal, plain, b)
        for i in range(y.size):
            y[i] = y[i] - x[i] if np.isfinite(x[i]) else y.dtype.type(0)
