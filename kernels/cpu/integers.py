"""Integers in as many bits as each block of 256 needs, without loss.

A block's signed integers are folded to unsigned ones (0, -1, 1, -2, ... become 0, 1, 2, 3, ...) and packed by the
width of the largest. Blocks of 64-bit integers that do not fit 32 bits are stored as they are, with width 64.

Shapes, for n blocks: `src`, `dst`, `acc` (count,) of any integer dtype, 256 (n - 1) < count <= 256 n; `widths` (n,)
uint8; `words` uint32, at least ``8 * widths.sum()``; `room` (256,) uint32.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from collcomp.kernels.cpu.jit import INLINED, inlined, kernel
from collcomp.kernels.cpu.packing import BLOCK, LANES, pack, unpack

__all__ = ["add", "count_words", "decode", "encode"]

_I32 = ir.IntType(32)
#: Width of blocks that are stored as they are.
_WIDE = 64


@intrinsic
def _fold(typing_context, x):
    """Signed integer `x`, of at most 32 bits in effect, as uint32; small magnitudes become small numbers."""

    def generate(context, builder, signature, args):
        value = _as32(builder, args[0], signed=True)
        one, last = ir.Constant(_I32, 1), ir.Constant(_I32, 31)
        return builder.xor(builder.shl(value, one), builder.ashr(value, last))

    return types.uint32(x), generate


@intrinsic
def _unfold(typing_context, u):
    """Undo `_fold`, as int32."""

    def generate(context, builder, signature, args):
        one, zero = ir.Constant(_I32, 1), ir.Constant(_I32, 0)
        return builder.xor(builder.lshr(args[0], one), builder.sub(zero, builder.and_(args[0], one)))

    return types.int32(u), generate


@intrinsic
def _low32(typing_context, x):
    """The low 32 bits of unsigned integer `x`."""
    return types.uint32(x), lambda context, builder, signature, args: _as32(builder, args[0], signed=False)


def _as32(builder, value, signed):
    if value.type.width > 32:
        return builder.trunc(value, _I32)
    if value.type.width < 32:
        return builder.sext(value, _I32) if signed else builder.zext(value, _I32)
    return value


@intrinsic
def _bits(typing_context, x):
    """Number of bits that uint32 `x` needs."""

    def generate(context, builder, signature, args):
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))
        return builder.zext(builder.sub(ir.Constant(_I32, 32), zeros), ir.IntType(64))

    return types.int64(types.uint32), generate


@intrinsic
def _or32(typing_context, x, y):
    """Bitwise or, which numba itself would widen to 64 bits."""
    return types.uint32(types.uint32, types.uint32), lambda context, builder, signature, args: builder.or_(*args)


def _to_unsigned(x):
    raise NotImplementedError


@overload(_to_unsigned, jit_options=INLINED)
def _to_unsigned_overload(x):
    return (lambda x: _fold(x)) if x.signed else (lambda x: _low32(x))


def _from_unsigned(u, like):
    raise NotImplementedError


@overload(_from_unsigned, jit_options=INLINED)
def _from_unsigned_overload(u, like):
    return (lambda u, like: _unfold(u)) if like.dtype.signed else (lambda u, like: u)


def _fits(x):
    raise NotImplementedError


@overload(_fits, jit_options=INLINED)
def _fits_overload(x):
    """Whether all of `x` fit 32 bits."""
    if x.dtype.bitwidth < 64:
        return lambda x: True
    low, high = (-(2**31), 2**31 - 1) if x.dtype.signed else (0, 2**32 - 1)
    least, most = x.dtype(low), x.dtype(high)

    def fits(x):
        outside = 0
        for i in range(x.size):
            outside |= (x[i] < least) | (x[i] > most)
        return outside == 0

    return fits


def _store_wide(x, words, start):
    raise NotImplementedError


@overload(_store_wide, jit_options=INLINED)
def _store_wide_overload(x, words, start):
    if x.dtype.bitwidth < 64:
        return lambda x, words, start: None

    def store(x, words, start):
        for i in range(x.size):
            words[start + 2 * i] = np.uint32(np.uint64(x[i]) & np.uint64(0xFFFFFFFF))
            words[start + 2 * i + 1] = np.uint32(np.uint64(x[i]) >> np.uint64(32))

    return store


def _load_wide(words, start, y, accumulate):
    raise NotImplementedError


@overload(_load_wide, jit_options=INLINED)
def _load_wide_overload(words, start, y, accumulate):
    if y.dtype.bitwidth < 64:
        return lambda words, start, y, accumulate: None

    def load(words, start, y, accumulate):
        for i in range(y.size):
            value = np.uint64(words[start + 2 * i]) | (np.uint64(words[start + 2 * i + 1]) << np.uint64(32))
            y[i] = y.dtype.type(value) + (y[i] if accumulate else y.dtype.type(0))

    return load


@kernel
def encode(src, widths, words, room):
    """Pack `src`; return how many words were written (`room` in every width is enough: 8 times the width a block)."""
    written = 0
    for b in range(widths.size):
        x = src[b * BLOCK : min(b * BLOCK + BLOCK, src.size)]
        if not _fits(x):
            widths[b] = _WIDE
            for i in range(2 * x.size, 2 * BLOCK):
                words[written + i] = 0
            _store_wide(x, words, written)
            written += LANES * _WIDE
            continue
        bits = np.uint32(0)
        for i in range(x.size):
            u = _to_unsigned(x[i])
            room[i] = u
            bits = _or32(bits, u)
        for i in range(x.size, BLOCK):
            room[i] = 0
        width = _bits(bits)
        widths[b] = width
        pack(room, 0, words, written, width)
        written += LANES * width
    return written


@kernel
def count_words(widths, limit):
    """How many words blocks of these widths take; -1 where one is neither at most `limit` nor 64, if that is more."""
    total = 0
    for b in range(widths.size):
        width = np.int64(widths[b])
        if width > limit and not (limit > 32 and width == _WIDE):
            return -1
        if width > 32 and width != _WIDE:
            return -1
        total += LANES * width
    return total


@inlined
def _unpack_blocks(widths, words, dst, room, accumulate):
    read = 0
    for b in range(widths.size):
        y = dst[b * BLOCK : min(b * BLOCK + BLOCK, dst.size)]
        width = np.int64(widths[b])
        if width == _WIDE:
            _load_wide(words, read, y, accumulate)
        else:
            unpack(words, read, room, 0, width)
            if accumulate:
                for i in range(y.size):
                    y[i] += dst.dtype.type(_from_unsigned(room[i], dst))
            else:
                for i in range(y.size):
                    y[i] = dst.dtype.type(_from_unsigned(room[i], dst))
        read += LANES * width


@kernel
def decode(widths, words, dst, room):
    """Unpack into `dst`; the widths were checked by `count_words`."""
    _unpack_blocks(widths, words, dst, room, False)


@kernel
def add(widths, words, acc, room):
    """Unpack and add to `acc`; sums wrap around."""
    _unpack_blocks(widths, words, acc, room, True)
