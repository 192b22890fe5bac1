"""Building blocks for intrinsics on vectors: generic LLVM IR, which every target turns into what it has."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

__all__ = ["constant", "element_pointer", "load", "same", "splat", "store", "undefined"]

_I32 = ir.IntType(32)


def element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to element `index` (int64) of a one-dimensional contiguous array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def undefined(element: Any, lanes: int) -> Any:
    """A vector of any values."""
    return ir.Constant(ir.VectorType(element, lanes), ir.Undefined)


def same(element: Any, lanes: int, value: Any) -> Any:
    """The constant vector whose lanes are all `value`."""
    return ir.Constant(ir.VectorType(element, lanes), [value] * lanes)


def constant(kind: Any, value: Any) -> Any:
    """`value` as a constant of type `kind`: a scalar, or a vector whose lanes are all `value`."""
    return same(kind.element, kind.count, value) if isinstance(kind, ir.VectorType) else ir.Constant(kind, value)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """The vector whose lanes are all the scalar `value`."""
    first = builder.insert_element(undefined(value.type, lanes), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined(value.type, lanes), same(_I32, lanes, 0))


def load(builder: Any, pointer: Any, element: Any, lanes: int) -> Any:
    """`lanes` elements from `pointer` on, which may be unaligned."""
    vector = builder.load(builder.bitcast(pointer, ir.VectorType(element, lanes).as_pointer()))
    vector.align = 1
    return vector


def store(builder: Any, vector: Any, pointer: Any) -> None:
    """Write `vector` from `pointer` on, which may be unaligned."""
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer())).align = 1
