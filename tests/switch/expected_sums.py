"""What programs make of sums of float32, without packets."""

from __future__ import annotations

import numpy as np

from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets
from collcomp.switch.programs import Program, lanes_for


def summed(program: Program, operands: np.ndarray) -> np.ndarray:
    """The sums that a switch with this program gives, in any order of its packets.

    Parameters
    ----------
    program : Program
        One of `PROGRAMS`.
    operands : ndarray of float32, shape (workers, count)

    Returns
    -------
    ndarray of float32, shape (count,)
    """
    lanes = lanes_for(program, operands.dtype, "sum")
    if lanes == packets.FLOAT32:
        return _rounded_once(operands)
    assert program.payload_nbytes is not None
    elements, out = program.payload_nbytes // 4, np.empty(operands.shape[1], np.float32)
    for low in range(0, out.size, elements):
        chunk = np.ascontiguousarray(operands[:, low : low + elements])
        out[low : low + elements] = (_block if lanes == packets.BLOCK32 else _fixed)(chunk)
    return out


def _rounded_once(operands: np.ndarray) -> np.ndarray:
    exact = cpu.load("exact")
    n, count = operands.shape
    window, signs = np.empty(count, np.int64), np.empty(count, np.uint8)
    limbs, special = np.empty((count, exact.LIMBS), np.int64), np.empty(count, np.uint8)
    headroom, out = (n - 1).bit_length(), np.empty(count, np.float32)
    base = exact.first(operands[0], headroom, window, signs, limbs, special)
    for x in operands[1:]:
        base = exact.add(x, headroom, base, window, signs, limbs, special)
    exact.finish(base, window, signs, limbs, special, out)
    return out


def _block(chunk: np.ndarray) -> np.ndarray:
    fixed_point = cpu.load("fixed_point")
    exponent = max(fixed_point.exponent(x) for x in chunk)
    scale = np.float32(fixed_point.block_scale(len(chunk), exponent))
    codes, out = np.empty(chunk.shape, np.int32), np.empty(chunk.shape[1], np.float32)
    fixed_point.quantise(chunk.reshape(-1), scale, codes.reshape(-1))
    fixed_point.dequantise(np.add.reduce(codes, dtype=np.int32), scale, out)
    return out


def _fixed(chunk: np.ndarray) -> np.ndarray:
    fixed_point = cpu.load("fixed_point")
    codes, out = np.empty(chunk.shape, np.int32), np.empty(chunk.shape[1], np.float32)
    fixed_point.quantise(chunk.reshape(-1), fixed_point.FACTOR, codes.reshape(-1))
    total = codes[0].copy()
    for x in codes[1:]:
        fixed_point.add_saturating(total, x)
    if fixed_point.exceeds(chunk.reshape(-1)) or fixed_point.is_saturated(total):
        return _rounded_once(chunk)
    fixed_point.dequantise(total, fixed_point.FACTOR, out)
    return out
