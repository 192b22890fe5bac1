"""Blocks of small floats with one power of two as their scale.

The dtypes of `scales` and `codes` tell the format:

==========  =========  ==================================================================================
`scales`    `codes`    format
==========  =========  ==================================================================================
float32     uint8      e4m3, the scale such that the largest element does not saturate
float32     int8       e5m2, likewise
uint8       uint8      MXFP8: e4m3, the scale by the rule of OCP Microscaling (biased exponents)
uint8       int8       MXFP4: e2m1, likewise, two a byte: of 32 elements, the first 16 in the low halves
==========  =========  ==================================================================================

A block is *raw* when its largest magnitude is not finite, or so large that rounding it up could overflow: its scale is
then NaN, or 255, its codes are zero, and its elements stand in `raw`, one such block after another.

Shapes, for n blocks of `block` elements (a multiple of 32): `src`, `dst`, `acc`, `kept`, `residual` (n * block,)
float32 or float64; `scales` (n,); `codes` (n * block,), or half as many for e2m1; `raw` at least as many elements as
the raw blocks have, of the dtype of `src`.

All work on values is done on 32 lanes at once: loops over blocks as short as 32 are not vectorised by the compiler.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from collcomp.kernels.cpu.bits import emit_hash32, emit_narrow_to_odd, from_magnitude
from collcomp.kernels.cpu.common import copy, random32_or_none
from collcomp.kernels.cpu.jit import INLINED, inlined, kernel
from collcomp.kernels.cpu.minifloats import E2M1, E4M3, E5M2, emit_round, emit_widen
from collcomp.kernels.cpu.vectors import element_pointer, load, same, splat, store

__all__ = ["LANES", "count_raw", "decode", "decode_add", "encode", "encode_feedback", "encode_keep", "encode_sum"]

LANES = 32
#: Elements whose blocks get their scales before the first of them is rounded: short loops of one purpose run faster.
_GROUP = 512
#: Scale exponent, biased by 127, of raw blocks.
_RAW = 255

_I8, _I32, _I64 = (ir.IntType(width) for width in (8, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()
_FORMATS = {
    (types.float32, types.uint8): E4M3,
    (types.float32, types.int8): E5M2,
    (types.uint8, types.uint8): E4M3,
    (types.uint8, types.int8): E2M1,
}


def _format(scales, codes):
    return _FORMATS[scales.dtype, codes.dtype]


def _element(dtype):
    return _F32 if dtype == types.float32 else _F64


def _chunk_of(context, builder, kind, array, chunk):
    """Pointer to the elements of `array` that belong to chunk number `chunk`."""
    return element_pointer(context, builder, kind, array, builder.mul(chunk, ir.Constant(_I64, LANES)))


def _codes_of(context, builder, form, kind, codes, chunk):
    """Pointer to the codes of chunk number `chunk`."""
    return element_pointer(
        context, builder, kind, codes, builder.mul(chunk, ir.Constant(_I64, LANES * form.nbits // 8))
    )


def _magnitude_type(x):
    return types.int32 if x.dtype == types.float32 else types.int64


def _emit_largest(context, builder, dtype, first, chunks, lanes_of):
    """The largest magnitude, as `bits.magnitude` gives it, in the lanes that `lanes_of` gives for each chunk."""
    bits = _I32 if dtype == types.float32 else _I64
    lanes = ir.VectorType(bits, LANES)
    largest = cgutils.alloca_once_value(builder, same(bits, LANES, 0))
    with cgutils.for_range(builder, chunks) as loop:
        x = lanes_of(builder.add(first, loop.index))
        a = builder.and_(builder.bitcast(x, lanes), same(bits, LANES, (1 << (bits.width - 1)) - 1))
        so_far = builder.load(largest)
        builder.store(builder.select(builder.icmp_unsigned(">", a, so_far), a, so_far), largest)
    name = f"llvm.vector.reduce.umax.v{LANES}i{bits.width}"
    reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(bits, [lanes]), name)
    return builder.call(reduce, [builder.load(largest)])


@intrinsic
def _largest(typing_context, x, i, chunks):
    """The largest magnitude in `chunks` chunks of `x`, from chunk `i` on."""

    def generate(context, builder, signature, args):
        array, first, count = args

        def lanes_of(chunk):
            pointer = _chunk_of(context, builder, signature.args[0], array, chunk)
            return load(builder, pointer, _element(x.dtype), LANES)

        return _emit_largest(context, builder, x.dtype, first, count, lanes_of)

    return _magnitude_type(x)(x, types.int64, types.int64), generate


@intrinsic
def _accumulate(typing_context, x, y, i, chunks):
    """Add `chunks` chunks of `x`, from chunk `i` on, to those of `y`; the largest magnitude of the sums."""

    def generate(context, builder, signature, args):
        added, into, first, count = args

        def lanes_of(chunk):
            a = load(builder, _chunk_of(context, builder, signature.args[0], added, chunk), _element(x.dtype), LANES)
            pointer = _chunk_of(context, builder, signature.args[1], into, chunk)
            total = builder.fadd(a, load(builder, pointer, _element(y.dtype), LANES))
            store(builder, total, pointer)
            return total

        return _emit_largest(context, builder, y.dtype, first, count, lanes_of)

    return _magnitude_type(y)(x, y, types.int64, types.int64), generate


@intrinsic
def _round(typing_context, x, i, step, inverse, codes, scales, j, key, counter, y, k, feedback):
    """Write the codes of chunk `i` of `x` into chunk `j` of `codes`.

    `key` is None, or a uint32 from which, with `counter` on, random bits are drawn. `y` is None, or its chunk `k` gets
    the values of the codes, or where `feedback` is not None what was rounded off.
    """
    form = _format(scales, codes)
    half = LANES // 2

    def part(builder, lanes, first):
        places = ir.Constant(ir.VectorType(_I32, half), [*range(first, first + half)])
        return builder.shuffle_vector(lanes, lanes, places)

    def generate(context, builder, signature, args):
        pointer = _chunk_of(context, builder, signature.args[0], args[0], args[1])
        values = load(builder, pointer, _element(x.dtype), LANES)
        scaled = builder.fmul(values, splat(builder, args[3], LANES))
        noise = None
        if key != types.none:
            positions = ir.Constant(ir.VectorType(_I32, LANES), [*range(LANES)])
            counters = builder.add(splat(builder, builder.trunc(args[8], _I32), LANES), positions)
            noise = emit_hash32(builder, splat(builder, args[7], LANES), counters)
        if x.dtype == types.float64:
            single = ir.VectorType(_F32, LANES)
            scaled = builder.fptrunc(scaled, single) if noise else emit_narrow_to_odd(builder, scaled)
        lanes = emit_round(builder, scaled, form, noise)
        packed = lanes
        if form.nbits == 4:
            packed = builder.or_(part(builder, lanes, 0), builder.shl(part(builder, lanes, half), same(_I32, half, 4)))
        packed = builder.trunc(packed, ir.VectorType(_I8, packed.type.count))
        store(builder, packed, _codes_of(context, builder, form, signature.args[4], args[4], args[6]))
        if y != types.none:
            kept = _emit_values(builder, lanes, form, x.dtype, splat(builder, args[2], LANES))
            if feedback != types.none:
                kept = builder.fsub(values, kept)
            store(builder, kept, _chunk_of(context, builder, signature.args[9], args[9], args[10]))
        return context.get_dummy_value()

    arguments = x, types.int64, x.dtype, x.dtype, codes, scales, types.int64, key, types.int64, y, types.int64
    return types.void(*arguments, feedback), generate


def _emit_values(builder, lanes, form, dtype, step):
    """The values of codes (int32), times `step`."""
    values = emit_widen(builder, lanes, form)
    if dtype == types.float64:
        values = builder.fpext(values, ir.VectorType(_F64, LANES))
    return builder.fmul(values, step)


def _widened(context, builder, form, signature, args):
    """The values of a chunk, from the arguments of `_widen`."""
    _, codes, j, step, *_ = args
    dtype = signature.args[4].dtype
    nbytes = LANES * form.nbits // 8
    pointer = _codes_of(context, builder, form, signature.args[1], codes, j)
    lanes = builder.zext(load(builder, pointer, _I8, nbytes), ir.VectorType(_I32, nbytes))
    if form.nbits == 4:
        low, high = builder.and_(lanes, same(_I32, nbytes, 15)), builder.lshr(lanes, same(_I32, nbytes, 4))
        lanes = builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, LANES), [*range(LANES)]))
    return _emit_values(builder, lanes, form, dtype, splat(builder, step, LANES))


@intrinsic
def _widen(typing_context, scales, codes, j, step, y, i):
    """Write chunk `j` of `codes`, times `step`, into chunk `i` of `y`."""
    form = _format(scales, codes)

    def generate(context, builder, signature, args):
        values = _widened(context, builder, form, signature, args)
        store(builder, values, _chunk_of(context, builder, signature.args[4], *args[4:]))
        return context.get_dummy_value()

    return types.void(scales, codes, types.int64, y.dtype, y, types.int64), generate


@intrinsic
def _widen_add(typing_context, scales, codes, j, step, y, i):
    """Add chunk `j` of `codes`, times `step`, to chunk `i` of `y`."""
    form = _format(scales, codes)

    def generate(context, builder, signature, args):
        values = _widened(context, builder, form, signature, args)
        pointer = _chunk_of(context, builder, signature.args[4], *args[4:])
        store(builder, builder.fadd(load(builder, pointer, _element(y.dtype), LANES), values), pointer)
        return context.get_dummy_value()

    return types.void(scales, codes, types.int64, y.dtype, y, types.int64), generate


def _exponent(largest, scales, codes, key):
    """The biased exponent of the scale of a block with this largest magnitude."""
    raise NotImplementedError


@overload(_exponent, jit_options=INLINED)
def _exponent_overload(largest, scales, codes, key):
    form = _format(scales, codes)
    mantissa, bias = (23, 127) if largest == types.int32 else (52, 1023)
    limit = (bias + 127) << mantissa
    offset = bias - 127 + form.exponent
    # OCP's rule lets numbers between the largest of the format and the next power of two saturate. The other one,
    # which unbiased rounding needs too, gives them the next scale.
    saturates = scales.dtype == types.uint8 and key == types.none
    fraction = (form.largest & ((1 << form.mantissa) - 1)) << (mantissa - form.mantissa)
    carry = 0 if saturates else (1 << mantissa) - 1 - fraction

    def exponent(largest, scales, codes, key):
        if largest >= limit:
            return _RAW
        return max(((np.int64(largest) + carry) >> mantissa) - offset, 1)

    return exponent


def _set_scale(scales, b, exponent):
    """Store the scale of block `b`; whether it marks the block as raw."""
    raise NotImplementedError


@overload(_set_scale, jit_options=INLINED)
def _set_scale_overload(scales, b, exponent):
    if scales.dtype == types.uint8:

        def set_scale(scales, b, exponent):
            scales[b] = exponent
            return exponent == _RAW
    else:

        def set_scale(scales, b, exponent):
            scales[b] = np.float32(np.nan) if exponent == _RAW else from_magnitude(np.int32(exponent << 23))
            return exponent == _RAW

    return set_scale


def _is_raw(scale):
    raise NotImplementedError


@overload(_is_raw, jit_options=INLINED)
def _is_raw_overload(scale):
    if scale == types.uint8:
        return lambda scale: scale == _RAW
    return lambda scale: np.isnan(scale)


def _step(scale):
    """What codes are multiplied by, as float32."""
    raise NotImplementedError


@overload(_step, jit_options=INLINED)
def _step_overload(scale):
    if scale == types.uint8:
        # 0 is the subnormal number 2**-127.
        return lambda scale: from_magnitude(np.int32(max(np.int64(scale) << 23, 1 << 22)))
    return lambda scale: scale


def _chunks(scales, block):
    """Chunks of a block; the compiler is to know that Microscaling's have one."""
    raise NotImplementedError


@overload(_chunks, jit_options=INLINED)
def _chunks_overload(scales, block):
    if scales.dtype == types.uint8:
        return lambda scales, block: 1
    return lambda scales, block: block // LANES


def _keep_raw(x, y, start, feedback):
    """What `_round` leaves in `y`, from `start` on, for a raw block `x`."""
    raise NotImplementedError


@overload(_keep_raw, jit_options=INLINED)
def _keep_raw_overload(x, y, start, feedback):
    if y == types.none:
        return lambda x, y, start, feedback: None

    keep = feedback == types.none

    def keep_raw(x, y, start, feedback):
        for i in range(x.size):
            y[start + i] = x[i] if keep else 0

    return keep_raw


@inlined
def _round_block(x, i, scales, codes, b, block, key, first, y, feedback):
    """Write the codes of the block of `x` that begins with chunk `i` as block `b`, whose scale stands in `scales`."""
    chunks = _chunks(scales, block)
    step = x.dtype.type(_step(scales[b]))
    inverse = x.dtype.type(1) / step
    stream = random32_or_none(key, first + b)
    for k in range(chunks):
        j = b * chunks + k
        _round(x, i + k, step, inverse, codes, scales, j, stream, k * LANES, y, j, feedback)


@inlined
def _round_blocks(x, i, scales, codes, start, stop, found, raw, block, key, first, y, feedback):
    """Write the codes of blocks `start` to `stop`, whose scales stand in `scales`; the first begins with chunk `i`.

    `found` of them are raw and go into `raw`; `y` and `feedback` are those of `_round`.
    """
    chunks = _chunks(scales, block)
    if found == 0:
        for b in range(start, stop):
            _round_block(x, i + (b - start) * chunks, scales, codes, b, block, key, first, y, feedback)
        return
    width = codes.size // scales.size
    copied = 0
    for b in range(start, stop):
        at = i + (b - start) * chunks
        if _is_raw(scales[b]):
            values = x[at * LANES : at * LANES + block]
            copy(values, raw[copied : copied + block])
            copied += block
            for k in range(b * width, b * width + width):
                codes[k] = 0
            _keep_raw(values, y, b * block, feedback)
        else:
            _round_block(x, at, scales, codes, b, block, key, first, y, feedback)


@inlined
def _encode(src, kept, scales, codes, raw, block, key, first):
    chunks = _chunks(scales, block)
    group = max(_GROUP // block, 1)
    found = 0
    for start in range(0, scales.size, group):
        stop = min(start + group, scales.size)
        here = 0
        for b in range(start, stop):
            here += _set_scale(scales, b, _exponent(_largest(src, b * chunks, chunks), scales, codes, key))
        rest = raw[found * block :]
        _round_blocks(src, start * chunks, scales, codes, start, stop, here, rest, block, key, first, kept, None)
        found += here
    return found


@kernel
def encode(src, scales, codes, raw, block, key, first):
    """Encode `src`.

    Parameters
    ----------
    key : int or None
        Of the random stream; None rounds to nearest.
    first : int
        Number of the first block in its message, which counts the random stream on.

    Returns
    -------
    int
        Number of raw blocks.
    """
    return _encode(src, None, scales, codes, raw, block, key, first)


@kernel
def encode_keep(src, kept, scales, codes, raw, block, key, first):
    """`encode`, and write what `decode` will give into `kept`, which may be `src`."""
    return _encode(src, kept, scales, codes, raw, block, key, first)


@kernel
def encode_feedback(src, residual, scales, codes, raw, block, key, first):
    """Encode ``src + residual`` and leave in `residual` what was rounded off (nothing in raw blocks)."""
    chunks = _chunks(scales, block)
    group = max(_GROUP // block, 1)
    found = 0
    for start in range(0, scales.size, group):
        stop = min(start + group, scales.size)
        here = 0
        for b in range(start, stop):
            largest = _accumulate(src, residual, b * chunks, chunks)
            here += _set_scale(scales, b, _exponent(largest, scales, codes, key))
        rest = raw[found * block :]
        _round_blocks(
            residual, start * chunks, scales, codes, start, stop, here, rest, block, key, first, residual, True
        )
        found += here
    return found


@kernel
def encode_sum(
    scales_of_others, codes_of_others, own, position, divisor, total, kept, scales, codes, raw, block, key, first
):
    """Encode the sum over all ranks, in rank order, in one pass; the operands of the others have no raw blocks.

    Parameters
    ----------
    scales_of_others, codes_of_others : tuples of ndarray
        Operands of the other ranks, by rank.
    own : ndarray
        This rank's operand; may share memory with `kept`.
    position : int
        This rank.
    divisor : float
        What the sum is divided by.
    total : ndarray
        Room for the sums of one block or more.
    kept : ndarray
        Gets what `decode` will give.

    Returns
    -------
    int
        Number of raw blocks.
    """
    chunks = _chunks(scales, block)
    group = total.size // block
    found = 0
    for start in range(0, scales.size, group):
        stop = min(start + group, scales.size)
        i = start * chunks
        for rank in range(len(codes_of_others)):
            s, c = scales_of_others[rank], codes_of_others[rank]
            for b in range(start, stop):
                step = total.dtype.type(_step(s[b]))
                for k in range(b * chunks, b * chunks + chunks):
                    if rank == 0:
                        _widen(s, c, k, step, total, k - i)
                    else:
                        _widen_add(s, c, k, step, total, k - i)
            if rank + 1 == max(position, 1):  # the first two may be added in either order
                _accumulate(own[start * block : stop * block], total, 0, (stop - start) * chunks)
        if divisor != 1:
            for k in range((stop - start) * block):
                total[k] /= divisor
        here = 0
        for b in range(start, stop):
            here += _set_scale(scales, b, _exponent(_largest(total, b * chunks - i, chunks), scales, codes, key))
        rest = raw[found * block :]
        _round_blocks(total, 0, scales, codes, start, stop, here, rest, block, key, first, kept, None)
        found += here
    return found


@kernel
def count_raw(scales):
    """Number of scales that mark a raw block."""
    found = 0
    for b in range(scales.size):
        found += _is_raw(scales[b])
    return found


@kernel
def decode(scales, codes, raw, block, dst):
    """Decode into `dst`; `raw` has as many blocks as `scales` has raw ones."""
    chunks = _chunks(scales, block)
    found = 0
    for b in range(scales.size):
        if _is_raw(scales[b]):
            copy(raw[found * block : found * block + block], dst[b * block : b * block + block])
            found += 1
        else:
            step = dst.dtype.type(_step(scales[b]))
            for k in range(b * chunks, b * chunks + chunks):
                _widen(scales, codes, k, step, dst, k)


@kernel
def decode_add(scales, codes, raw, block, acc):
    """Decode and add to `acc`; `raw` as for `decode`."""
    chunks = _chunks(scales, block)
    found = 0
    for b in range(scales.size):
        if _is_raw(scales[b]):
            for k in range(block):
                acc[b * block + k] += raw[found * block + k]
            found += 1
        else:
            step = acc.dtype.type(_step(scales[b]))
            for k in range(b * chunks, b * chunks + chunks):
                _widen_add(scales, codes, k, step, acc, k)
