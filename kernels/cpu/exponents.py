"""Exponents of floats in 3 bits each, against a base that a block shares; signs and mantissas as they are.

A block has 512 elements. A code of 0 ... 6 means the exponent ``base - code``, a code of 7 that it stands in `escapes`.
The base lies 2 above the mean of the exponents of finite numbers but 0; where most are 0, it is 2.

`bits` are the floats' own; their dtype tells the format:

========  ========  ===============================  ===========  =====================================  =========
bits      format    low                              middle       rest (n,) uint8                        exponents
========  ========  ===============================  ===========  =====================================  =========
uint16    bfloat16  empty                            empty        sign and mantissa                      uint8
uint32    float32   (n,) uint16, the lowest 16 bits  empty        sign and upper mantissa                uint8
uint64    float64   (n,) uint32, the lowest 32 bits  (n,) uint16  sign, upper mantissa, and the code     uint16
========  ========  ===============================  ===========  =====================================  =========

`codes` (24 * blocks,) uint64 holds three planes of 512 bits for each block, lowest bit first; it is empty for uint64.
`bases` (blocks,) and `escapes` are exponents; so is the scratch `e` (512,). The scratch `c` (512,) is uint8.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from collcomp.kernels.cpu.bits import bfloat16_to_float32, count_ones, count_trailing_zeros, from_magnitude
from collcomp.kernels.cpu.jit import INLINED, inlined, kernel
from collcomp.kernels.cpu.vectors import element_pointer, load, same, splat, store

__all__ = ["BLOCK", "count_escapes", "decode", "decode_add", "encode"]

BLOCK = 512
_LANES = 64
_GROUPS = BLOCK // _LANES
_CODE_BITS = 3
_WORDS = _CODE_BITS * _GROUPS
_ESCAPE = 7
_HEADROOM = 2

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))


@intrinsic
def _pack(typing_context, c, planes):
    """The lowest 3 bits of each of `c` as `planes`."""

    def generate(context, builder, signature, args):
        src = element_pointer(context, builder, signature.args[0], args[0], _I64(0))
        dst = element_pointer(context, builder, signature.args[1], args[1], _I64(0))
        for g in range(_GROUPS):
            lanes = load(builder, builder.gep(src, [_I64(g * _LANES)]), _I8, _LANES)
            for k in range(_CODE_BITS):
                bit = builder.and_(lanes, same(_I8, _LANES, 1 << k))
                mask = builder.bitcast(builder.icmp_unsigned("!=", bit, same(_I8, _LANES, 0)), _I64)
                builder.store(mask, builder.gep(dst, [_I64(k * _GROUPS + g)])).align = 1
        return context.get_dummy_value()

    return types.void(c, planes), generate


@intrinsic
def _unpack(typing_context, planes, c):
    """Undo `_pack`."""

    def generate(context, builder, signature, args):
        src = element_pointer(context, builder, signature.args[0], args[0], _I64(0))
        dst = element_pointer(context, builder, signature.args[1], args[1], _I64(0))
        for g in range(_GROUPS):
            lanes = same(_I8, _LANES, 0)
            for k in range(_CODE_BITS):
                word = builder.load(builder.gep(src, [_I64(k * _GROUPS + g)]))
                word.align = 1
                mask = builder.bitcast(word, ir.VectorType(_I1, _LANES))
                bit = builder.select(mask, same(_I8, _LANES, 1 << k), same(_I8, _LANES, 0))
                lanes = builder.or_(lanes, bit)
            store(builder, lanes, builder.gep(dst, [_I64(g * _LANES)]))
        return context.get_dummy_value()

    return types.void(planes, c), generate


@intrinsic
def _sum(typing_context, e):
    """The sum of the exponents of a block."""
    element = ir.IntType(e.dtype.bitwidth)

    def generate(context, builder, signature, args):
        src = element_pointer(context, builder, signature.args[0], args[0], _I64(0))
        total = same(_I16, _LANES, 0)  # 8 exponents of 11 bits fit
        for g in range(_GROUPS):
            lanes = load(builder, builder.gep(src, [_I64(g * _LANES)]), element, _LANES)
            total = builder.add(total, builder.zext(lanes, total.type) if element.width < 16 else lanes)
        wide = builder.zext(total, ir.VectorType(_I32, _LANES))
        lanes = _LANES
        while lanes > 1:
            lanes //= 2
            halves = [
                builder.shuffle_vector(wide, wide, ir.Constant(ir.VectorType(_I32, lanes), list(range(k, k + lanes))))
                for k in (0, lanes)
            ]
            wide = builder.add(*halves)
        return builder.zext(builder.extract_element(wide, _I32(0)), _I64)

    return types.int64(e), generate


@intrinsic
def _matches(typing_context, x, first, mask, value):
    """Which of ``x[first : first + 64]``, masked, are `value`, as the bits of a uint64."""
    element = ir.IntType(x.dtype.bitwidth)

    def generate(context, builder, signature, args):
        pointer = element_pointer(context, builder, signature.args[0], args[0], args[1])
        mask, value = (splat(builder, builder.trunc(arg, element), _LANES) for arg in args[2:])
        lanes = builder.and_(load(builder, pointer, element, _LANES), mask)
        return builder.bitcast(builder.icmp_unsigned("==", lanes, value), _I64)

    return types.uint64(x, types.int64, types.int64, types.int64), generate


def _split(bits, low, middle, rest, e):
    raise NotImplementedError


@overload(_split, jit_options=INLINED)
def _split_overload(bits, low, middle, rest, e):
    """Write all but the exponents of a block into `low`, `middle` and `rest`, the exponents into `e`."""
    if bits.dtype == types.uint16:

        def split(bits, low, middle, rest, e):
            for i in range(BLOCK):
                rest[i] = (bits[i] & 0x7F) | ((bits[i] >> 8) & 0x80)
            for i in range(BLOCK):
                e[i] = bits[i] >> 7
    elif bits.dtype == types.uint32:

        def split(bits, low, middle, rest, e):
            for i in range(BLOCK):
                low[i] = bits[i]
            for i in range(BLOCK):
                rest[i] = ((bits[i] >> 16) & 0x7F) | ((bits[i] >> 24) & 0x80)
            for i in range(BLOCK):
                e[i] = bits[i] >> 23
    else:

        def split(bits, low, middle, rest, e):
            for i in range(BLOCK):
                low[i] = bits[i]
            for i in range(BLOCK):
                middle[i] = bits[i] >> 32
            for i in range(BLOCK):
                rest[i] = ((bits[i] >> 45) & 0x78) | ((bits[i] >> 56) & 0x80)
            for i in range(BLOCK):
                e[i] = (bits[i] >> 52) & 0x7FF

    return split


def _join(low, middle, rest, e, bits):
    raise NotImplementedError


@overload(_join, jit_options=INLINED)
def _join_overload(low, middle, rest, e, bits):
    """Undo `_split`."""
    if bits.dtype == types.uint16:

        def join(low, middle, rest, e, bits):
            for i in range(BLOCK):
                bits[i] = (rest[i] & 0x7F) | ((rest[i] & 0x80) << 8) | (e[i] << 7)
    elif bits.dtype == types.uint32:

        def join(low, middle, rest, e, bits):
            for i in range(BLOCK):
                bits[i] = low[i] | ((rest[i] & 0x7F) << 16) | (e[i] << 23) | ((rest[i] & 0x80) << 24)
    else:

        def join(low, middle, rest, e, bits):
            for i in range(BLOCK):
                upper = ((rest[i] & 0x78) << 13) | (np.uint32(e[i]) << 20) | ((rest[i] & 0x80) << 24)
                bits[i] = (np.uint64(upper) << 32) | (np.uint64(middle[i]) << 32) | low[i]

    return join


@inlined
def _base(e, largest):
    """The base of a block with the exponents `e`, none of them above `largest`."""
    zeros, odd = 0, 0
    for g in range(_GROUPS):
        zeros += count_ones(_matches(e, g * _LANES, largest, 0))
        odd += count_ones(_matches(e, g * _LANES, largest, largest))
    usual = BLOCK - zeros - odd
    if 2 * zeros > BLOCK or usual == 0:
        return _HEADROOM
    return min((_sum(e) - odd * largest + usual // 2) // usual + _HEADROOM, largest)


@inlined
def _encode_exponents(e, base, c):
    for i in range(BLOCK):
        c[i] = min(e.dtype.type(base - e[i]), e.dtype.type(_ESCAPE))


@inlined
def _decode_exponents(base, c, e):
    for i in range(BLOCK):
        e[i] = base - c[i]


def _put(c, planes, rest):
    raise NotImplementedError


@overload(_put, jit_options=INLINED)
def _put_overload(c, planes, rest):
    """Store the codes `c` of a block."""
    if planes.dtype == types.uint64:
        return lambda c, planes, rest: _pack(c, planes)

    def put(c, planes, rest):
        for i in range(BLOCK):
            rest[i] |= c[i]

    return put


def _get(planes, rest, c):
    raise NotImplementedError


@overload(_get, jit_options=INLINED)
def _get_overload(planes, rest, c):
    """Undo `_put`."""
    if planes.dtype == types.uint64:
        return lambda planes, rest, c: _unpack(planes, c)

    def get(planes, rest, c):
        for i in range(BLOCK):
            c[i] = rest[i] & _ESCAPE

    return get


def _escapes(planes, rest, g):
    raise NotImplementedError


@overload(_escapes, jit_options=INLINED)
def _escapes_overload(planes, rest, g):
    """Which codes of group `g` of a block are escapes, as the bits of a uint64."""
    if planes.dtype == types.uint64:
        return lambda planes, rest, g: planes[g] & planes[g + _GROUPS] & planes[g + 2 * _GROUPS]
    return lambda planes, rest, g: _matches(rest, g * _LANES, _ESCAPE, _ESCAPE)


@inlined
def _count_escapes(planes, rest):
    escaped = 0
    for g in range(_GROUPS):
        escaped += count_ones(_escapes(planes, rest, g))
    return escaped


@kernel
def encode(bits, low, middle, rest, codes, bases, escapes, e, c):
    """Encode `bits`; return the number of escapes, or -1 when they do not fit."""
    found = 0
    largest = 255 if bases.itemsize == 1 else 2047
    for b in range(bases.size):
        i, j = b * BLOCK, b * BLOCK + BLOCK  # slices of an empty array are empty
        planes = codes[b * _WORDS : b * _WORDS + _WORDS]
        _split(bits[i:j], low[i:j], middle[i:j], rest[i:j], e)
        bases[b] = _base(e, largest)
        _encode_exponents(e, bases[b], c)
        _put(c, planes, rest[i:j])
        if found + _count_escapes(planes, rest[i:j]) > escapes.size:
            return -1
        for g in range(_GROUPS):
            lanes = _escapes(planes, rest[i:j], g)
            while lanes != 0:
                escapes[found] = e[g * _LANES + count_trailing_zeros(lanes)]
                found += 1
                lanes &= lanes - np.uint64(1)
    return found


@kernel
def count_escapes(rest, codes, bases):
    """How many codes are escapes."""
    found = 0
    for b in range(bases.size):
        found += _count_escapes(codes[b * _WORDS : b * _WORDS + _WORDS], rest[b * BLOCK : b * BLOCK + BLOCK])
    return found


@inlined
def _decode_block(low, middle, rest, planes, base, escapes, found, e, c, bits):
    """Decode a block; return how many escapes were used so far."""
    _get(planes, rest, c)
    _decode_exponents(base, c, e)
    for g in range(_GROUPS):
        lanes = _escapes(planes, rest, g)
        while lanes != 0:
            e[g * _LANES + count_trailing_zeros(lanes)] = escapes[found]
            found += 1
            lanes &= lanes - np.uint64(1)
    _join(low, middle, rest, e, bits)
    return found


@kernel
def decode(low, middle, rest, codes, bases, escapes, e, c, bits):
    """Decode into `bits`; `escapes` are as many as `count_escapes` found."""
    found = 0
    for b in range(bases.size):
        i, j = b * BLOCK, b * BLOCK + BLOCK
        planes = codes[b * _WORDS : b * _WORDS + _WORDS]
        found = _decode_block(low[i:j], middle[i:j], rest[i:j], planes, bases[b], escapes, found, e, c, bits[i:j])


def _add(bits, acc):
    raise NotImplementedError


@overload(_add, jit_options=INLINED)
def _add_overload(bits, acc):
    """Add the floats that have these `bits` to `acc`."""
    if bits.dtype == types.uint16:

        def add(bits, acc):
            for i in range(BLOCK):
                acc[i] += bfloat16_to_float32(np.int16(bits[i]))
    else:
        signed = np.int32 if bits.dtype == types.uint32 else np.int64

        def add(bits, acc):
            for i in range(BLOCK):
                acc[i] += from_magnitude(signed(bits[i]))

    return add


@kernel
def decode_add(low, middle, rest, codes, bases, escapes, e, c, bits, acc):
    """Decode and add to `acc`; `bits` (512,) is scratch."""
    found = 0
    for b in range(bases.size):
        i, j = b * BLOCK, b * BLOCK + BLOCK
        planes = codes[b * _WORDS : b * _WORDS + _WORDS]
        found = _decode_block(low[i:j], middle[i:j], rest[i:j], planes, bases[b], escapes, found, e, c, bits)
        _add(bits, acc[i:j])
