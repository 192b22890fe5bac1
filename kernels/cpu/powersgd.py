"""Products of a large matrix with thin factors, and the factors' orthogonalisation.

Numba rather than BLAS: every sum has one fixed order, so that ranks with different CPUs, each of which
computes the result from the reduced factors by itself, get the same bits. As fast up to rank 8, slower above.

Shapes: a matrix `x`, `dst`, `acc` of `rows` times `columns` is flat, row by row, and its last row may be shorter, as
if the missing elements were zero; `p` (rows, rank) and `q` (rank, columns), of the same dtype; ``x ~ p @ q``.
"""

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.vectors import element_pointer, load, store

__all__ = ["LANES", "TILE", "multiply", "multiply_add", "orthonormalise", "project", "project_back"]

#: Partial sums of a dot product.
LANES = 16
#: Columns that are looked at together: a tile of four rows stays in the first cache.
TILE = 1024
#: Rows that are looked at together.
_ROWS = 8
#: A column of which less is left was a combination of those before it.
_DEPENDENT = 1e-14


@intrinsic
def _partial_dots(typing_context, x, qs, count, sums):
    """The dot products of ``x[:count]`` with each of the tuple `qs`, in LANES partial sums each, which go to `sums`.

    `count` is a multiple of LANES. In vector IR because partial sums in memory, which numba would leave there, take
    twice as long.
    """

    def generate(context, builder, signature, args):
        element = context.get_data_type(x.dtype)
        start = ir.Constant(ir.IntType(64), 0)
        vector = ir.VectorType(element, LANES)
        pointers = [
            element_pointer(context, builder, qs.dtype, q, start)
            for q in cgutils.unpack_tuple(builder, args[1], qs.count)
        ]
        totals = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for _ in pointers]
        step = ir.Constant(ir.IntType(64), LANES)
        with cgutils.for_range_slice(builder, start, args[2], step) as (i, _):
            xs = load(builder, element_pointer(context, builder, x, args[0], i), element, LANES)
            for pointer, total in zip(pointers, totals, strict=True):
                product = builder.fmul(xs, load(builder, builder.gep(pointer, [i]), element, LANES))
                builder.store(builder.fadd(builder.load(total), product), total)
        for k, total in enumerate(totals):
            place = element_pointer(context, builder, sums, args[3], ir.Constant(ir.IntType(64), k * LANES))
            store(builder, builder.load(total), place)
        return context.get_dummy_value()

    return types.void(x, qs, types.int64, sums), generate


@inlined
def _dots(x, qs, sums, totals):
    """The dot products of `x` with each of the tuple `qs`."""
    whole = x.size // LANES * LANES
    _partial_dots(x, qs, whole, sums)
    for k in range(len(qs)):
        lanes = sums[k * LANES : k * LANES + LANES]
        for i in range(whole, x.size):
            lanes[i - whole] += x[i] * qs[k][i]
        half = LANES // 2
        while half:
            for i in range(half):
                lanes[i] += lanes[half + i]
            half //= 2
        totals[k] = lanes[0]


@kernel
def project(x, addend, q, p, sums):
    """``p = x @ q.T``; with an `addend`, of ``x += addend``; `sums` is scratch of 4 * LANES elements."""
    rank, columns = q.shape
    fours = rank // 4 * 4
    for i in range(p.shape[0]):
        row = x[i * columns : min(i * columns + columns, x.size)]
        if addend is not None:
            added = addend[i * columns : i * columns + row.size]
            for j in range(row.size):
                row[j] += added[j]
        for k in range(0, fours, 4):
            _dots(row, (q[k], q[k + 1], q[k + 2], q[k + 3]), sums, p[i, k:])
        for k in range(fours, rank):
            _dots(row, (q[k],), sums, p[i, k:])


@kernel
def project_back(x, p, q):
    """``q = p.T @ x``."""
    rank, columns = q.shape
    q[:] = 0
    whole = x.size // columns // 4 * 4
    for i in range(0, whole, 4):
        for start in range(0, columns, TILE):
            width = min(TILE, columns - start)
            first = i * columns + start
            x0 = x[first : first + width]
            x1 = x[first + columns : first + columns + width]
            x2 = x[first + 2 * columns : first + 2 * columns + width]
            x3 = x[first + 3 * columns : first + 3 * columns + width]
            for k in range(rank):
                a, b, c, d = p[i, k], p[i + 1, k], p[i + 2, k], p[i + 3, k]
                y = q[k, start : start + width]
                for j in range(width):
                    y[j] += a * x0[j] + b * x1[j] + c * x2[j] + d * x3[j]
    for i in range(whole, p.shape[0]):
        row = x[i * columns : min(i * columns + columns, x.size)]
        for k in range(rank):
            a = p[i, k]
            y = q[k]
            for j in range(row.size):
                y[j] += a * row[j]


@inlined
def _combine(p, q, start, y):
    """``y = p @ q[:, start : start + y.size]``."""
    rank = p.size
    y[:] = 0
    fours = rank // 4 * 4
    for k in range(0, fours, 4):
        a, b, c, d = p[k], p[k + 1], p[k + 2], p[k + 3]
        q0, q1, q2, q3 = q[k, start:], q[k + 1, start:], q[k + 2, start:], q[k + 3, start:]
        for j in range(y.size):
            y[j] = y[j] + a * q0[j] + b * q1[j] + c * q2[j] + d * q3[j]
    for k in range(fours, rank):
        a, q0 = p[k], q[k, start:]
        for j in range(y.size):
            y[j] += a * q0[j]


@kernel
def multiply(p, q, dst):
    """``dst = p @ q``."""
    columns = q.shape[1]
    for first in range(0, p.shape[0], _ROWS):
        for start in range(0, columns, TILE):
            for i in range(first, min(first + _ROWS, p.shape[0])):
                stop = min(i * columns + min(start + TILE, columns), dst.size)
                if i * columns + start < stop:
                    _combine(p[i], q, start, dst[i * columns + start : stop])


@kernel
def multiply_add(p, q, acc, product):
    """``acc += p @ q``; `product` is scratch of TILE elements."""
    columns = q.shape[1]
    for first in range(0, p.shape[0], _ROWS):
        for start in range(0, columns, TILE):
            for i in range(first, min(first + _ROWS, p.shape[0])):
                stop = min(i * columns + min(start + TILE, columns), acc.size)
                if i * columns + start < stop:
                    y = acc[i * columns + start : stop]
                    _combine(p[i], q, start, product[: y.size])
                    for j in range(y.size):
                        y[j] += product[j]


@kernel
def orthonormalise(p, dots):
    """Make the columns of `p` orthonormal, by Gram and Schmidt's method, twice.

    A column that depends on those before it becomes zero.

    Parameters
    ----------
    p : ndarray of float64, shape (rows, rank)
    dots : ndarray of float64, shape (rank,)
        Scratch.
    """
    rows, rank = p.shape
    # The largest element of each column becomes 1, so that no square overflows.
    for k in range(rank):
        dots[k] = 0
    for i in range(rows):
        for k in range(rank):
            dots[k] = max(dots[k], abs(p[i, k]))
    for i in range(rows):
        for k in range(rank):
            p[i, k] = p[i, k] / dots[k] if dots[k] > 0 else 0.0
    for _ in range(2):
        for k in range(rank):
            for m in range(k, rank):
                dots[m] = 0
            for i in range(rows):
                a = p[i, k]
                for m in range(k, rank):
                    dots[m] += a * p[i, m]
            norm = math.sqrt(dots[k])
            if norm <= _DEPENDENT * math.sqrt(rows):
                for i in range(rows):
                    p[i, k] = 0
                continue
            for m in range(k + 1, rank):
                dots[m] /= norm
            for i in range(rows):
                a = p[i, k] / norm
                p[i, k] = a
                for m in range(k + 1, rank):
                    p[i, m] -= a * dots[m]
