"""Casts between working floats and 16-bit floats, rounding once, to nearest even.

The dtype of `codes`, the bits of the 16-bit floats, tells their format: uint16 for IEEE float16, int16 for bfloat16.

Shapes: `src`, `dst`, `acc`, `kept`, `residual` (count,) float32 or float64; `codes` (count,).
"""

from numba import types
from numba.extending import overload

from collcomp.kernels.cpu.bits import (
    bfloat16_to_float32,
    float16_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
    narrow_to_odd,
)
from collcomp.kernels.cpu.jit import INLINED, kernel

__all__ = ["decode", "decode_add", "encode", "encode_feedback", "encode_keep"]


def _narrow(x, codes):
    raise NotImplementedError


@overload(_narrow, jit_options=INLINED)
def _narrow_overload(x, codes):
    if codes.dtype == types.uint16:
        return lambda x, codes: float32_to_float16(narrow_to_odd(x))
    return lambda x, codes: float32_to_bfloat16(narrow_to_odd(x))


def _widen(code):
    raise NotImplementedError


@overload(_widen, jit_options=INLINED)
def _widen_overload(code):
    if code == types.uint16:
        return lambda code: float16_to_float32(code)
    return lambda code: bfloat16_to_float32(code)


@kernel
def encode(src, codes):
    """Round `src`; what is too large becomes infinite."""
    for i in range(src.size):
        codes[i] = _narrow(src[i], codes)


@kernel
def encode_keep(src, kept, codes):
    """`encode`, and write what `decode` will give into `kept`, which may be `src`."""
    for i in range(src.size):
        code = codes.dtype.type(_narrow(src[i], codes))
        codes[i] = code
        kept[i] = _widen(code)


@kernel
def encode_feedback(src, residual, codes):
    """Round ``src + residual`` and leave in `residual` what was rounded off (nothing of what is not finite)."""
    for i in range(src.size):
        total = src[i] + residual[i]
        code = codes.dtype.type(_narrow(total, codes))
        codes[i] = code
        left = total - _widen(code)
        residual[i] = left if left - left == 0 else 0


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
