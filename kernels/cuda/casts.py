"""Casts between working floats and 16-bit floats (see `kernels.cpu.casts`): one thread an element.

The dtype of `codes` tells their format: uint16 for IEEE float16, int16 for bfloat16.

Shapes: `src`, `dst`, `acc`, `kept`, `residual` (count,) float32 or float64; `codes` (count,).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from collcomp.kernels.cpu.minifloats import BFLOAT16, FLOAT16
from collcomp.kernels.cuda.bits import hash32, random32
from collcomp.kernels.cuda.jit import inlined, kernel, launch
from collcomp.kernels.cuda.minifloats import narrow_to_odd, rounding, widening
from collcomp.kernels.cuda.operands import with_nan_of
from collcomp.kernels.cuda.primitives import bits_of
from collcomp.kernels.cuda.sweeps import sweeping, tiles

__all__ = ["decode", "decode_add", "encode", "encode_feedback", "encode_keep"]

#: Elements whose random bits come from one key, and which bits of an index count them.
_BLOCK, _WITHIN = 1024, np.uint64(1023)


def encode(src: Any, codes: Any, key: int | None) -> None:
    """Round `src`; what is too large becomes infinite. `key` is that of the random stream, None rounds to nearest."""
    _encode("encode", src, src, codes, key)


def encode_keep(src: Any, kept: Any, codes: Any, key: int | None) -> None:
    """`encode`, and write what `decode` will give into `kept`, which may be `src`."""
    _encode("keep", src, kept, codes, key)


def encode_feedback(src: Any, residual: Any, codes: Any, key: int | None) -> None:
    """Round ``src + residual`` and leave in `residual` what was rounded off (nothing of what is not finite)."""
    _encode("feedback", src, residual, codes, key)


def decode(codes: Any, dst: Any) -> None:
    """Widen `codes` into `dst`."""
    _decode(False, codes, dst)


def decode_add(codes: Any, acc: Any) -> None:
    """Widen `codes` and add them to `acc`."""
    _decode(True, codes, acc)


def _encode(mode: str, src: Any, dst: Any, codes: Any, key: int | None) -> None:
    if src.size:
        encoder = _encoder(src.dtype.type, _format(codes), mode, key is not None)
        launch(encoder, tiles(src.size), src, dst, codes.view(np.uint16), np.uint64(key or 0))


def _decode(adds: bool, codes: Any, dst: Any) -> None:
    if dst.size:
        launch(_decoder(dst.dtype.type, _format(codes), adds), tiles(dst.size), codes.view(np.uint16), dst)


def _format(codes: Any) -> Any:
    return FLOAT16 if codes.dtype == np.uint16 else BFLOAT16


# ---------------------------------------------------------------------- kernels


@functools.cache
def _narrowing(real, form, stochastic):
    """A function of (x, noise): the code of `x` as an integer below 2**16."""
    infinity = form.largest + 1
    quiet = infinity | 1 << (form.mantissa - 1)
    code_of = rounding(form, stochastic, infinity)
    top = 1 << 15
    if stochastic:

        @inlined
        def narrow(x, noise):
            return np.int32(quiet) if np.isnan(x) else code_of(np.float32(x), noise)

        return narrow
    # bfloat16 keeps what it has room for of a NaN.
    mantissa = 23 if real is np.float32 else 52
    payload, mask = mantissa - form.mantissa, (1 << form.mantissa) - 1 if form is BFLOAT16 else 0
    single = narrow_to_odd if real is np.float64 else np.float32

    @inlined
    def narrow(x, noise):
        if np.isnan(x):
            bits = bits_of(x)
            code = np.int32(quiet | ((bits >> payload) & mask))
            return np.int32(code | top) if bits < 0 else code
        return code_of(single(x), noise)

    return narrow


@functools.cache
def _encoder(real, form, mode, stochastic):
    narrow, value_of, zero, infinity = _narrowing(real, form, stochastic), widening(form), real(0), real(np.inf)
    feedback, keeps = mode == "feedback", mode == "keep"

    @inlined
    def get(arrays, i):
        x = arrays[0][i]
        return with_nan_of(x, x + arrays[1][i]) if feedback else x

    @inlined
    def put(arrays, i, x, first):
        _, dst, codes, key = arrays
        noise = hash32(random32(key, first // _BLOCK), i & _WITHIN) if stochastic else key
        code = narrow(x, noise)
        codes[i] = code
        if keeps:
            dst[i] = value_of(code)
        if feedback:
            left = x - value_of(code)
            dst[i] = left if abs(left) < infinity else zero

    sweep = sweeping(get, put)

    @kernel
    def encoder(src, dst, codes, key):
        sweep((src, dst, codes, key), src.size)

    return encoder


@functools.cache
def _decoder(real, form, adds):
    value_of = widening(form)

    @inlined
    def get(arrays, i):
        return arrays[0][i], arrays[1][i] if adds else real(0)

    @inlined
    def put(arrays, i, read, first):
        code, before = read
        value = real(value_of(code))
        arrays[1][i] = before + value if adds else value

    sweep = sweeping(get, put)

    @kernel
    def decoder(codes, dst):
        sweep((codes, dst), dst.size)

    return decoder
