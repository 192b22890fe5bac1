"""How arrays travel through a switch: as lanes that its adders know."""

from __future__ import annotations

import numpy as np

__all__ = ["carried_as", "from_lanes", "to_lanes"]


def carried_as(dtype: np.dtype, how: str) -> tuple[np.dtype, str]:
    """Elements and operation of the switch by which ``"sum"``, ``"max"``, ``"min"`` or ``"or"`` of a dtype is done."""
    if how == "or" or (how == "sum" and dtype.kind == "b"):
        return np.dtype(np.uint8), "or"
    if how == "sum" or dtype.itemsize not in (1, 2, 4, 8):
        return dtype, how
    return np.dtype(f"u{dtype.itemsize}"), "max"


def to_lanes(values: np.ndarray, how: str) -> np.ndarray:
    """The bytes to be sent: those of the values, or, for ``"max"`` and ``"min"``, of integers in the same order."""
    if how in ("sum", "or"):
        return values.view(np.uint8)
    bits = values.view(f"u{values.itemsize}")
    top = bits.dtype.type(1 << 8 * values.itemsize - 1)
    if _is_float(values.dtype):
        keys = np.where(bits & top, ~bits, bits | top)
    else:
        keys = bits ^ top if values.dtype.kind == "i" else bits.copy()
    if how == "min":
        keys = ~keys
    if _is_float(values.dtype):
        keys[values != values] = ~bits.dtype.type(0)  # NaN wins
    return keys.view(np.uint8)


def from_lanes(lanes: np.ndarray, values: np.ndarray, how: str) -> None:
    """Undo `to_lanes` for what came back; sums and unions are the values already."""
    keys = lanes.view(f"u{values.itemsize}")
    bits = values.view(keys.dtype)
    top = keys.dtype.type(1 << 8 * values.itemsize - 1)
    bits[...] = ~keys if how == "min" else keys
    if _is_float(values.dtype):
        bits[...] = np.where(bits & top, bits & ~top, ~bits)
        values[keys == ~keys.dtype.type(0)] = np.nan
    elif values.dtype.kind == "i":
        bits ^= top


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"
