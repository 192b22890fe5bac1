"""Error-bounded codes: integers on a grid, packed by width, each at most half a step from its value.

An element becomes the nearest multiple of a step. Of a block of 256 such integers, either they or their differences
are packed, in as many bits as they need. The first difference is to the last integer of the block before, or to 0 where
that is raw.

`grid` (3, 2) holds two grids, a fine and a coarse one, in the dtype of the values: steps, their inverses, and the
largest magnitudes for which the arithmetic stays within the bound. A block takes the first grid whose limit it keeps,
or travels *raw* where it keeps neither (NaN and infinities never do). A step that the dtype has no room for is 0, and
so is its limit: only zeros are coded then.

A block's byte in `codes` has its width (0 ... 32) in bits 0 to 5, or `RAW`; bit 6 tells of differences, bit 7 of the
coarse grid. Blocks stand one after another: ``8 * width`` words of 32 bits, or 256 values.

Shapes, for n blocks: `src`, `kept`, `residual`, `dst`, `acc` (256 * n,) float32 or float64; `total` (256 * n,) int32;
`codes` (n,) uint8; `words` (uint32) and `values` (as `src`) are two views of the same memory; `q` and `steps` (256,)
int32 are room to work in.

A message whose last block has to be padded takes two calls: `position` says where in `words` a call's first block
stands, and `before` which integer comes before it.

Results must not depend on the CPU: multiplications and additions are never contracted.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from collcomp.kernels.cpu.bits import from_magnitude, magnitude
from collcomp.kernels.cpu.differences import differences, prefix_sum, width_of
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packing import BLOCK, LANES, pack_signed, unpack_signed

__all__ = [
    "add_integers",
    "decode",
    "decode_add",
    "encode",
    "encode_feedback",
    "encode_integers",
    "encode_keep",
    "extremes",
    "quantise",
    "section_nbytes",
]

#: Stands for a width, and is the mask of widths.
_RAW = 63
_DIFFERENCES, _COARSE = 64, 128
#: Differences are computed for one block of so many where they do not pay.
_TRIALS = 4

_I32, _I64 = ir.IntType(32), ir.IntType(64)
#: numba's float type -> its integer twin, both LLVM types, 1.5 * 2**mantissa, and the bits of infinity.
_FLOATS = {
    types.float32: (types.int32, _I32, ir.FloatType(), 1.5 * 2**23, 0x7F800000),
    types.float64: (types.int64, _I64, ir.DoubleType(), 1.5 * 2**52, 0x7FF0000000000000),
}


@intrinsic
def _nearest(typing_context, x):
    """`x` rounded to an integer, ties to even, as int32, for magnitudes below 2**22 (float32) or 2**31 (float64).

    The adder does it: in 1.5 * 2**23 + x the last place is 1.
    """
    _, bits, kind, magic = _FLOATS[x][:4]

    def generate(context, builder, signature, args):
        offset = ir.Constant(kind, magic)
        shifted = builder.bitcast(builder.fadd(args[0], offset), bits)
        result = builder.sub(shifted, builder.bitcast(offset, bits))
        return result if bits is _I32 else builder.trunc(result, _I32)

    return types.int32(x), generate


@intrinsic
def _as_float(typing_context, q, like):
    """Int32 `q` in the float type of `like`."""
    kind = _FLOATS[like][2]
    return like(q, like), lambda context, builder, signature, args: builder.sitofp(args[0], kind)


@intrinsic
def _order(typing_context, x, otherwise):
    """An integer that is ordered as the float `x` is, `otherwise` where `x` is not finite."""
    twin, bits, _, _, infinity = _FLOATS[x]
    sign = bits.width - 1

    def generate(context, builder, signature, args):
        given = builder.bitcast(args[0], bits)
        flip = builder.lshr(builder.ashr(given, ir.Constant(bits, sign)), ir.Constant(bits, 1))
        absolute = builder.and_(given, ir.Constant(bits, 2**sign - 1))
        finite = builder.icmp_signed("<", absolute, ir.Constant(bits, infinity))
        return builder.select(finite, builder.xor(given, flip), args[1])

    return twin(x, twin), generate


@kernel
def extremes(src, none):
    """The least and the greatest finite element, as integers of the dtype's size that are ordered alike.

    `none` (2,) holds what is returned where there is none: the greatest and the least of these integers.
    """
    low, high = none[0], none[1]
    for i in range(src.size):
        low = min(low, _order(src[i], none[0]))
        high = max(high, _order(src[i], none[1]))
    return low, high


# ---------------------------------------------------------------------- one block


@inlined
def _quantise(x, inverse, q):
    """The integers of `x`; returns its largest magnitude."""
    largest = magnitude(x[0])
    for i in range(BLOCK):
        largest = max(largest, magnitude(x[i]))
        q[i] = _nearest(x[i] * inverse)
    return from_magnitude(largest)


@inlined
def _trial(codes, b):
    """Whether to look at the differences of block `b`: always after one where they are narrower, else now and then.

    The first difference of all is to 0 and so tells nothing: the second block is looked at in any case.
    """
    return b < 2 or b % _TRIALS == 0 or (codes[b - 1] & _DIFFERENCES) != 0


@inlined
def _write(q, plain, trial, before, steps, words, position):
    """Pack `q`, which takes `plain` bits, or its differences where a trial shows fewer; return width and flag."""
    width = width_of(differences(q, before, steps)) if trial else plain
    if width < plain:
        pack_signed(steps, 0, words, position, width)
        return width | _DIFFERENCES
    pack_signed(q, 0, words, position, plain)
    return plain


@inlined
def _encode_block(x, grid, trial, before, q, steps, words, values, position):
    """Encode `x`, leaving its integers in `q`; return its code and step."""
    column = 0
    largest = _quantise(x, grid[1, 0], q)
    if not largest <= grid[2, 0]:
        if not largest <= grid[2, 1]:
            start = _place(position, values)
            raw = values[start : start + BLOCK]
            for i in range(BLOCK):
                raw[i] = x[i]
            q[BLOCK - 1] = 0
            return _RAW, grid[0, 0]
        column = 1
        _quantise(x, grid[1, 1], q)
    top = _nearest(largest * grid[1, column])
    code = _write(q, width_of(np.int32(top ^ (top << 1))), trial, before, steps, words, position)
    return code + _COARSE * column, grid[0, column]


@inlined
def _place(position, values):
    """Index into `values` of a position in words."""
    return position * 4 // values.itemsize


@inlined
def _length(code, values):
    """Words of a block."""
    return BLOCK * values.itemsize // 4 if code == _RAW else LANES * (code & _RAW)


@inlined
def _unpack(code, before, words, position, q):
    """Unpack a block that is not raw into `q`; return the last integer."""
    unpack_signed(words, position, q, 0, code & _RAW)
    return prefix_sum(q, before) if code & _DIFFERENCES else q[BLOCK - 1]


# ---------------------------------------------------------------------- messages


@kernel
def encode(src, grid, codes, words, values, position, before, q, steps):
    """Encode `src`; return the position and the integer at its end, and the number of raw blocks."""
    found = 0
    for b in range(codes.size):
        x = src[b * BLOCK : b * BLOCK + BLOCK]
        code, _ = _encode_block(x, grid, _trial(codes, b), before, q, steps, words, values, position)
        codes[b] = code
        found += code == _RAW
        before = q[BLOCK - 1]
        position += _length(code, values)
    return position, before, found


@kernel
def encode_keep(src, kept, grid, codes, words, values, position, before, q, steps):
    """`encode`, and write what `decode` will give into `kept`, which may be `src`."""
    found = 0
    for b in range(codes.size):
        x, y = src[b * BLOCK : b * BLOCK + BLOCK], kept[b * BLOCK : b * BLOCK + BLOCK]
        code, step = _encode_block(x, grid, _trial(codes, b), before, q, steps, words, values, position)
        codes[b] = code
        if code == _RAW:
            found += 1
            for i in range(BLOCK):
                y[i] = x[i]
        else:
            for i in range(BLOCK):
                y[i] = _as_float(q[i], step) * step
        before = q[BLOCK - 1]
        position += _length(code, values)
    return position, before, found


@kernel
def encode_feedback(src, residual, grid, codes, words, values, position, before, q, steps):
    """Encode `residual`, to which `src` is added first unless it is None, and leave in it what was rounded off."""
    found = 0
    for b in range(codes.size):
        e = residual[b * BLOCK : b * BLOCK + BLOCK]
        if src is not None:
            x = src[b * BLOCK : b * BLOCK + BLOCK]
            for i in range(BLOCK):
                e[i] += x[i]
        code, step = _encode_block(e, grid, _trial(codes, b), before, q, steps, words, values, position)
        codes[b] = code
        if code == _RAW:
            found += 1
            for i in range(BLOCK):
                e[i] = 0
        else:
            for i in range(BLOCK):
                e[i] -= _as_float(q[i], step) * step
        before = q[BLOCK - 1]
        position += _length(code, values)
    return position, before, found


@kernel
def section_nbytes(codes, itemsize):
    """Bytes that the blocks take (-1 where a code has no meaning), and the number of raw ones."""
    rows = raw = wrong = 0
    for b in range(codes.size):
        width = codes[b] & _RAW
        if codes[b] == _RAW:
            raw += 1
        else:
            rows += width
            wrong += width > 32
    return -1 if wrong else 4 * LANES * rows + BLOCK * itemsize * raw, raw


@kernel
def decode(dst, grid, codes, words, values, position, before, q):
    """Decode into `dst`, once `section_nbytes` was found to fit; return position and integer at its end."""
    for b in range(codes.size):
        y = dst[b * BLOCK : b * BLOCK + BLOCK]
        code = np.int64(codes[b])
        if code == _RAW:
            start = _place(position, values)
            x = values[start : start + BLOCK]
            for i in range(BLOCK):
                y[i] = x[i]
            before = np.int32(0)
        else:
            before = _unpack(code, before, words, position, q)
            step = grid[0, code >> 7]
            for i in range(BLOCK):
                y[i] = _as_float(q[i], step) * step
        position += _length(code, values)
    return position, before


@kernel
def decode_add(acc, grid, codes, words, values, position, before, q):
    """`decode`, and add to `acc`."""
    for b in range(codes.size):
        y = acc[b * BLOCK : b * BLOCK + BLOCK]
        code = np.int64(codes[b])
        if code == _RAW:
            start = _place(position, values)
            x = values[start : start + BLOCK]
            for i in range(BLOCK):
                y[i] += x[i]
            before = np.int32(0)
        else:
            before = _unpack(code, before, words, position, q)
            step = grid[0, code >> 7]
            for i in range(BLOCK):
                y[i] += _as_float(q[i], step) * step
        position += _length(code, values)
    return position, before


# ---------------------------------------------------------------------- sums of integers


@kernel
def quantise(src, grid, total):
    """The integers of `src` on the fine grid; returns whether all blocks keep its limit."""
    for start in range(0, src.size, BLOCK):
        if not _quantise(src[start : start + BLOCK], grid[1, 0], total[start : start + BLOCK]) <= grid[2, 0]:
            return False
    return True


@kernel
def add_integers(total, codes, words, q):
    """Add the integers of a message without raw blocks to `total`."""
    position, before = 0, np.int32(0)
    for b in range(codes.size):
        t = total[b * BLOCK : b * BLOCK + BLOCK]
        code = np.int64(codes[b])
        before = _unpack(code, before, words, position, q)
        for i in range(BLOCK):
            t[i] += q[i]
        position += LANES * (code & _RAW)


@kernel
def encode_integers(total, kept, step, codes, words, steps):
    """Encode integers; return the position at the end. `kept` gets their multiples of `step`."""
    position, before = 0, np.int32(0)
    for b in range(codes.size):
        t, y = total[b * BLOCK : b * BLOCK + BLOCK], kept[b * BLOCK : b * BLOCK + BLOCK]
        mask = np.int32(0)
        for i in range(BLOCK):
            mask |= np.int32(t[i] ^ (t[i] << 1))
            y[i] = _as_float(t[i], step) * step
        code = _write(t, width_of(np.int32(mask)), _trial(codes, b), before, steps, words, position)
        codes[b] = code
        before = t[BLOCK - 1]
        position += LANES * (code & _RAW)
    return position
