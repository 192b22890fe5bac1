"""Block quantisation (see `kernels.cpu.quantised`): one warp a block.

Shapes, for messages of `count` elements in n blocks of `block`, a multiple of the number of planes: `src`, `dst`,
`acc`, `kept`, `residual` (count,) float32 or float64; `scales` (n,) or, with offsets, (n, 2) float32; `codes` uint8,
one for as many elements as there are planes, the last block's rounded up; `places` (n,) int32; `counters` int32.

Raw blocks are written and read only by those who know of some: an encoder adds their number to `counters`, `locate`
numbers them and `copy_raw` copies them; decoders that are given no `places` decode them as NaN.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.bits import random32
from collcomp.kernels.cuda.blocks import Format, coding, decoding, inverse_of, measuring, scale_places
from collcomp.kernels.cuda.jit import LANES, THREADS, fine_grid, inlined, kernel, launch
from collcomp.kernels.cuda.operands import IN_PLACE, fetching, settling, storing
from collcomp.kernels.cuda.primitives import meet
from collcomp.kernels.cuda.raw_blocks import copy_raw as copy_padded
from collcomp.kernels.cuda.raw_blocks import locate, padded
from collcomp.kernels.cuda.whole_blocks import decoding_whole, encoding_whole, fit_registers, placing

__all__ = ["copy_raw", "decode", "decode_add", "encode", "encode_feedback", "encode_keep", "encode_sum", "locate"]

_WARPS = THREADS // LANES


def encode(
    src: Any, scales: Any, codes: Any, block: int, planes: tuple[int, ...], key: int | None, counters: Any
) -> None:
    """Encode `src`; `key` is that of the random stream, None rounds to nearest."""
    _encode("encode", src, src, (), 0, 1, scales, codes, block, planes, key, counters)


def encode_keep(
    src: Any, kept: Any, scales: Any, codes: Any, block: int, planes: tuple[int, ...], key: int | None, counters: Any
) -> None:
    """`encode`, and write what `decode` will give into `kept`, which may be `src`; raw blocks as they are."""
    _encode("keep", src, kept, (), 0, 1, scales, codes, block, planes, key, counters)


def encode_feedback(
    src: Any,
    residual: Any,
    scales: Any,
    codes: Any,
    block: int,
    planes: tuple[int, ...],
    key: int | None,
    counters: Any,
) -> None:
    """Encode ``src + residual`` and leave in `residual` what was rounded off, raw blocks until they are cleared."""
    _encode("feedback", src, residual, (), 0, 1, scales, codes, block, planes, key, counters)


def encode_sum(
    scales_of_others: tuple[Any, ...],
    codes_of_others: tuple[Any, ...],
    own: Any,
    position: int,
    divisor: float,
    kept: Any,
    scales: Any,
    codes: Any,
    block: int,
    planes: tuple[int, ...],
    key: int | None,
    counters: Any,
) -> None:
    """Encode the sum over all ranks, in rank order; the operands of the others have no raw blocks.

    Parameters as for the CPU, but `kept` is always given: sums are formed there. It may be `own`.
    """
    others = (scales_of_others, codes_of_others)
    _encode("sum", own, kept, others, position, divisor, scales, codes, block, planes, key, counters)


def decode(
    scales: Any, codes: Any, raw: Any, block: int, planes: tuple[int, ...], dst: Any, places: Any = None
) -> None:
    """Decode into `dst`."""
    _decode(False, scales, codes, raw, block, planes, dst, places)


def decode_add(
    scales: Any, codes: Any, raw: Any, block: int, planes: tuple[int, ...], acc: Any, places: Any = None
) -> None:
    """Decode and add to `acc`."""
    _decode(True, scales, codes, raw, block, planes, acc, places)


def copy_raw(src: Any, scales: Any, places: Any, block: int, planes: tuple[int, ...], raw: Any, clear: bool) -> None:
    """Copy the raw blocks of `src` to `raw`, the last one padded as it is for coding; `clear` them in `src` then."""
    copy_padded(src, scales, places, block, Format.of(src, scales, planes).multiple, raw, clear)


def _encode(
    mode: str,
    src: Any,
    dst: Any,
    others: tuple[Any, ...],
    position: int,
    divisor: float,
    scales: Any,
    codes: Any,
    block: int,
    planes: tuple[int, ...],
    key: int | None,
    counters: Any,
) -> None:
    form = Format.of(src, scales, planes)
    encoder = _encoder(form, mode, key is not None, block)
    arrays = (src, dst, *others, position, form.real(divisor), block)
    launch(encoder, fine_grid(-(-len(scales) // _WARPS)), arrays, scales, codes, np.uint64(key or 0), counters)


def _decode(
    adds: bool, scales: Any, codes: Any, raw: Any, block: int, planes: tuple[int, ...], dst: Any, places: Any
) -> None:
    decoder = _decoder(Format.of(dst, scales, planes), adds, places is not None, block)
    others = (codes, dst, block) if places is None else (codes, dst, block, raw, places)
    launch(decoder, fine_grid(-(-len(scales) // _WARPS)), scales, others)


# ---------------------------------------------------------------------- kernels


@functools.cache
def _operand(form, mode):
    """Element i of what is encoded: stored in ``arrays[1]`` where it is a sum."""
    planes, multiple = form.planes, form.multiple
    value_of, (_, scale_of) = decoding(form), scale_places(form.asymmetric)

    @inlined
    def part(scales, codes, block, count, i):
        b = i // block
        start = b * block
        width = padded(min(block, count - start), multiple) // planes
        byte = codes[start // planes + (i - start) % width]
        scale, offset = scale_of(scales, b)
        return value_of(byte, (i - start) // width, scale, offset)

    fetch, store = fetching(mode, part), storing(mode)

    @inlined
    def element(arrays, i):
        x = fetch(arrays, i)
        store(arrays, i, x)
        return x

    return element


@functools.cache
def _encoding(form, mode, stochastic):
    """A function of (arrays, b, lane, scales, codes, key, counters) that encodes block b, however long it is."""
    real, planes, asymmetric = form.real, form.planes, form.asymmetric
    multiple, sums, writes = form.multiple, mode in IN_PLACE, mode != "encode"
    measure, settle = measuring(form, _operand(form, mode)), settling(mode)
    code_of, inverse_of_scale, value_of = coding(form, stochastic), inverse_of(form, stochastic), decoding(form)
    put_scale, _ = scale_places(asymmetric)

    @inlined
    def encode(arrays, b, lane, scales, codes, key, counters):
        held, dst, block = arrays[1] if sums else arrays[0], arrays[1], arrays[-1]
        start = b * block
        used = min(block, held.size - start)
        scale, offset = measure(arrays, start, used, lane)
        meet()
        padding = held[start + used - 1] if asymmetric else real(0)
        meet()
        length = padded(used, multiple)
        width, half = length // planes, length // 2
        raw = np.isnan(scale)
        if lane == 0:
            put_scale(scales, b, scale, offset)
            if raw:
                cuda.atomic.add(counters, 0, 1)
        inverse = inverse_of_scale(scale)
        noise = random32(key, b) if stochastic else np.uint64(0)
        for j in range(lane, width, LANES):
            byte = 0
            for plane in range(planes):
                i = plane * width + j
                x = held[start + i] if i < used else padding
                if not raw:
                    byte |= code_of(x, i, half, offset, inverse, noise) << (plane * (8 // planes))
            codes[start // planes + j] = byte
            if writes:
                for plane in range(planes):
                    i = plane * width + j
                    if i < used:
                        x = held[start + i]
                        if raw:
                            dst[start + i] = x
                        else:
                            settle(dst, start + i, x, value_of(byte, plane, scale, offset))

    return encode


@functools.cache
def _encoder(form, mode, stochastic, block):
    encode_any = _encoding(form, mode, stochastic)
    if fit_registers(form, block):
        encode_whole = encoding_whole(form, mode, stochastic, block)

        @kernel
        def encoder(arrays, scales, codes, key, counters):
            lane = cuda.threadIdx.x % LANES
            for b in range(cuda.grid(1) // LANES, len(scales), cuda.gridsize(1) // LANES):
                if b * block + block <= arrays[0].size:
                    encode_whole(arrays, b, lane, scales, codes, key, counters)
                else:
                    encode_any(arrays, b, lane, scales, codes, key, counters)

        return encoder

    @kernel
    def encoder(arrays, scales, codes, key, counters):
        lane = cuda.threadIdx.x % LANES
        for b in range(cuda.grid(1) // LANES, len(scales), cuda.gridsize(1) // LANES):
            encode_any(arrays, b, lane, scales, codes, key, counters)

    return encoder


@functools.cache
def _decoding(form, adds, with_raw):
    """A function of (scales, others, b, lane) that decodes block b, however long it is, raw or not."""
    planes, multiple = form.planes, form.multiple
    value_of, place, (_, scale_of) = decoding(form), placing(adds), scale_places(form.asymmetric)

    if with_raw:

        @inlined
        def raw_element(others, b, i):
            raw, places, block = others[3], others[4], others[2]
            at = np.int64(places[b]) * block + i
            return raw[at] if at < raw.size else raw.dtype.type(np.nan)

    else:

        @inlined
        def raw_element(others, b, i):
            return others[1].dtype.type(np.nan)

    @inlined
    def decode(scales, others, b, lane):
        codes, dst, block = others[0], others[1], others[2]
        start = b * block
        used = min(block, dst.size - start)
        width = padded(used, multiple) // planes
        scale, offset = scale_of(scales, b)
        raw = np.isnan(scale)
        for j in range(lane, width, LANES):
            byte = codes[start // planes + j]
            for plane in range(planes):
                i = plane * width + j
                if i < used:
                    value = raw_element(others, b, i) if raw else value_of(byte, plane, scale, offset)
                    place(dst, start + i, value)

    return decode


@functools.cache
def _decoder(form, adds, with_raw, block):
    decode_any = _decoding(form, adds, with_raw)
    if fit_registers(form, block):
        decode_whole = decoding_whole(form, adds, block)
        _, scale_of = scale_places(form.asymmetric)

        @kernel
        def decoder(scales, others):
            lane = cuda.threadIdx.x % LANES
            for b in range(cuda.grid(1) // LANES, len(scales), cuda.gridsize(1) // LANES):
                scale, offset = scale_of(scales, b)
                if b * block + block <= others[1].size and not np.isnan(scale):
                    decode_whole(others[0], others[1], b, lane, scale, offset)
                else:
                    decode_any(scales, others, b, lane)

        return decoder

    @kernel
    def decoder(scales, others):
        lane = cuda.threadIdx.x % LANES
        for b in range(cuda.grid(1) // LANES, len(scales), cuda.gridsize(1) // LANES):
            decode_any(scales, others, b, lane)

    return decoder
