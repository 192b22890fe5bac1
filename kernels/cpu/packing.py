"""Blocks of 256 integers in as many bits each as the largest needs; negative ones in two's complement.

A block is 32 rows of 8 lanes. Each lane packs its 32 values of `width` bits one after another into `width` words of 32
bits, lowest bits first, and word k of all lanes stands in row k: so every step works on all lanes at once. A block
takes ``8 * width`` words.

Source: the vertical layout of Lemire and Boytsov, "Decoding billions of integers per second through vectorization",
Software: Practice and Experience 2015.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from collcomp.kernels.cpu import PACKED, PACKED_LANES
from collcomp.kernels.cpu.vectors import element_pointer, load, same, store

__all__ = ["BLOCK", "LANES", "pack", "pack_signed", "unpack", "unpack_signed"]

LANES, BLOCK = PACKED_LANES, PACKED
_ROWS = BLOCK // LANES

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _pack_rows(builder: Any, src: Any, dst: Any, width: int, signed: bool = False) -> None:
    if width == 0:
        return
    word, filled, written = None, 0, 0
    for row in range(_ROWS):
        values = load(builder, _row(builder, src, row), _I32, LANES)
        if signed and width < 32:
            values = builder.and_(values, same(_I32, LANES, (1 << width) - 1))
        word = values if not filled else builder.or_(word, builder.shl(values, same(_I32, LANES, filled)))
        filled += width
        if filled >= 32:
            store(builder, word, _row(builder, dst, written))
            written += 1
            filled -= 32
            word = builder.lshr(values, same(_I32, LANES, width - filled)) if filled else None


def _unpack_rows(builder: Any, src: Any, dst: Any, width: int) -> None:
    words: dict[int, Any] = {}

    def word(index: int) -> Any:
        if index not in words:
            words[index] = load(builder, _row(builder, src, index), _I32, LANES)
        return words[index]

    for row in range(_ROWS):
        if width == 0:
            store(builder, same(_I32, LANES, 0), _row(builder, dst, row))
            continue
        index, shift = divmod(row * width, 32)
        values = word(index)
        if shift:
            values = builder.lshr(values, same(_I32, LANES, shift))
        if shift + width > 32:
            values = builder.or_(values, builder.shl(word(index + 1), same(_I32, LANES, 32 - shift)))
        if shift + width != 32:
            values = builder.and_(values, same(_I32, LANES, (1 << width) - 1))
        store(builder, values, _row(builder, dst, row))


def _unpack_signed_rows(builder: Any, src: Any, dst: Any, width: int) -> None:
    for row in range(_ROWS):
        if width == 0:
            store(builder, same(_I32, LANES, 0), _row(builder, dst, row))
            continue
        index, shift = divmod(row * width, 32)
        values, above = load(builder, _row(builder, src, index), _I32, LANES), 32 - shift - width
        if above < 0:
            upper = load(builder, _row(builder, src, index + 1), _I32, LANES)
            values = builder.lshr(values, same(_I32, LANES, shift))
            values = builder.or_(values, builder.shl(upper, same(_I32, LANES, 32 - shift)))
            above = 32 - width
        if above:
            values = builder.shl(values, same(_I32, LANES, above))
        if width < 32:
            values = builder.ashr(values, same(_I32, LANES, 32 - width))
        store(builder, values, _row(builder, dst, row))


def _row(builder: Any, pointer: Any, row: int) -> Any:
    return builder.gep(pointer, [ir.Constant(_I64, row * LANES)])


def _by_width(name: str, rows: Callable[[Any, Any, Any, int], None]) -> Callable:
    """The function ``(src, dst, width)`` that has straight code for each width, as a generator of calls to it."""

    def call(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        src = element_pointer(context, builder, signature.args[0], args[0], args[1])
        dst = element_pointer(context, builder, signature.args[2], args[2], args[3])
        pointer = _I32.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, _I64])
        function = ir.Function(builder.module, kind, builder.module.get_unique_name(f"collcomp_{name}"))
        function.linkage = "internal"
        function.attributes.add("noinline")
        entry = ir.IRBuilder(function.append_basic_block())
        end = function.append_basic_block()
        ir.IRBuilder(end).ret_void()
        switch = entry.switch(function.args[2], end)
        for width in range(33):
            block = function.append_basic_block()
            switch.add_case(ir.Constant(_I64, width), block)
            inner = ir.IRBuilder(block)
            rows(inner, function.args[0], function.args[1], width)
            inner.branch(end)
        builder.call(function, [builder.bitcast(src, pointer), builder.bitcast(dst, pointer), args[4]])
        return context.get_dummy_value()

    return call


@intrinsic
def pack(typing_context, src, first, dst, start, width):
    """Pack ``src[first : first + BLOCK]``, all below ``2**width``, into ``dst[start : start + LANES * width]``.

    `src` and `dst` hold 32-bit integers; 0 <= `width` <= 32, anything else does nothing.
    """
    return types.void(src, types.int64, dst, types.int64, types.int64), _by_width("pack", _pack_rows)


@intrinsic
def pack_signed(typing_context, src, first, dst, start, width):
    """`pack` for int32 from ``-2**(width - 1)`` to ``2**(width - 1) - 1``."""
    rows = functools.partial(_pack_rows, signed=True)
    return types.void(src, types.int64, dst, types.int64, types.int64), _by_width("pack_signed", rows)


@intrinsic
def unpack(typing_context, src, first, dst, start, width):
    """Undo `pack`: ``src[first : first + LANES * width]`` into ``dst[start : start + BLOCK]``."""
    return types.void(src, types.int64, dst, types.int64, types.int64), _by_width("unpack", _unpack_rows)


@intrinsic
def unpack_signed(typing_context, src, first, dst, start, width):
    """Undo `pack_signed`."""
    return types.void(src, types.int64, dst, types.int64, types.int64), _by_width("unpack_signed", _unpack_signed_rows)
