"""Casts between working floats and 16-bit floats, rounding once: to nearest even, or stochastically.

The dtype of `codes`, the bits of the 16-bit floats, tells their format: uint16 for IEEE float16, int16 for bfloat16.

Shapes: `src`, `dst`, `acc`, `kept`, `residual` (count,) float32 or float64; `codes` (count,).
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from collcomp.kernels.cpu.bits import (
    bfloat16_to_float32,
    float16_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
    hash32,
    narrow_to_odd,
)
from collcomp.kernels.cpu.common import random32_or_none
from collcomp.kernels.cpu.jit import INLINED, kernel
from collcomp.kernels.cpu.minifloats import BFLOAT16, FLOAT16, emit_round

__all__ = ["decode", "decode_add", "encode", "encode_feedback", "encode_keep"]

#: Elements whose random bits come from one key.
_BLOCK = 1024


@intrinsic
def _round_stochastic(typing_context, x, codes, noise):
    """Float32 `x` rounded up or down as the 32 random bits of `noise` say; NaN stays NaN."""
    form = FLOAT16 if codes.dtype == types.uint16 else BFLOAT16

    def generate(context, builder, signature, args):
        infinity = form.largest + 1
        code = emit_round(builder, args[0], form, args[2], limit=infinity)
        quiet = ir.Constant(code.type, infinity | 1 << (form.mantissa - 1))
        code = builder.select(builder.fcmp_unordered("uno", args[0], args[0]), quiet, code)
        return builder.trunc(code, ir.IntType(16))

    return codes.dtype(x, codes, noise), generate


def _narrow(x, codes, key, i):
    raise NotImplementedError


@overload(_narrow, jit_options=INLINED)
def _narrow_overload(x, codes, key, i):
    if key != types.none:
        return lambda x, codes, key, i: _round_stochastic(np.float32(x), codes, hash32(key, np.uint32(i)))
    if codes.dtype == types.uint16:
        return lambda x, codes, key, i: float32_to_float16(narrow_to_odd(x))
    return lambda x, codes, key, i: float32_to_bfloat16(narrow_to_odd(x))


def _widen(code):
    raise NotImplementedError


@overload(_widen, jit_options=INLINED)
def _widen_overload(code):
    if code == types.uint16:
        return lambda code: float16_to_float32(code)
    return lambda code: bfloat16_to_float32(code)


@kernel
def encode(src, codes, key):
    """Round `src`; what is too large becomes infinite.

    Parameters
    ----------
    key : int or None
        Of the random stream; None rounds to nearest.
    """
    for start in range(0, src.size, _BLOCK):
        x, c = src[start : start + _BLOCK], codes[start : start + _BLOCK]
        stream = random32_or_none(key, start // _BLOCK)
        for i in range(x.size):
            c[i] = _narrow(x[i], c, stream, i)


@kernel
def encode_keep(src, kept, codes, key):
    """`encode`, and write what `decode` will give into `kept`, which may be `src`."""
    for start in range(0, src.size, _BLOCK):
        x, y, c = src[start : start + _BLOCK], kept[start : start + _BLOCK], codes[start : start + _BLOCK]
        stream = random32_or_none(key, start // _BLOCK)
        for i in range(x.size):
            code = c.dtype.type(_narrow(x[i], c, stream, i))
            c[i] = code
            y[i] = _widen(code)


@kernel
def encode_feedback(src, residual, codes, key):
    """Round ``src + residual`` and leave in `residual` what was rounded off (nothing of what is not finite)."""
    for start in range(0, src.size, _BLOCK):
        x, e, c = src[start : start + _BLOCK], residual[start : start + _BLOCK], codes[start : start + _BLOCK]
        stream = random32_or_none(key, start // _BLOCK)
        for i in range(x.size):
            total = x[i] + e[i]
            code = c.dtype.type(_narrow(total, c, stream, i))
            c[i] = code
            left = total - _widen(code)
            e[i] = left if left - left == 0 else 0


@kernel
def decode(codes, dst):
    """Widen `codes` into `dst`."""
    for i in range(dst.size):
        dst[i] = _widen(codes[i])


@kernel
def decode_add(codes, acc):
    """Widen `codes` and add them to `acc`."""
    for i in range(acc.size):
        acc[i] += _widen(codes[i])
