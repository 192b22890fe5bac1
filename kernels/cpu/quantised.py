"""Block quantisation: each block of floats becomes one scale and as many codes of a few bits (see `blocks`).

Shapes, for n blocks of `block` elements, a multiple of the number of planes: `src`, `dst`, `acc`, `kept`, `residual`
(n * block,) float32 or float64; `scales` (n,) or, with offsets, (n, 2) float32; `codes` (n * block / len(planes),)
uint8; `raw` at least as many elements as the raw blocks have, of the dtype of `src`.

Results must not depend on the CPU: multiplications and additions are never contracted.
"""

from collcomp.kernels.cpu.blocks import (
    add_block,
    add_to_block,
    decode_block,
    encode_block,
    is_raw,
    subtract_block,
)
from collcomp.kernels.cpu.common import copy
from collcomp.kernels.cpu.jit import kernel

__all__ = ["count_raw", "decode", "decode_add", "encode", "encode_feedback", "encode_keep", "encode_sum"]


@kernel
def encode(src, scales, codes, raw, block, planes, count, key, first):
    """Encode `src`.

    Parameters
    ----------
    planes : tuple
        ``(0, 1, ...)``, one item for each code in a byte.
    count : int
        Elements of `src` that are not padding.
    key : int or None
        Of the random stream; None rounds to nearest.
    first : int
        Number of the first block in its message, which counts the random stream on.

    Returns
    -------
    int
        Number of raw blocks.
    """
    width = block // len(planes)
    found = 0
    for b in range(len(scales)):
        x = src[b * block : b * block + block]
        c = codes[b * width : b * width + width]
        used = min(block, count - b * block)
        found += encode_block(x, None, used, c, planes, scales, b, raw, found * block, key, first + b)
    return found


@kernel
def encode_keep(src, kept, scales, codes, raw, block, planes, count, key, first):
    """`encode`, and write what `decode` will give into `kept`, which may be `src`."""
    width = block // len(planes)
    found = 0
    for b in range(len(scales)):
        x = src[b * block : b * block + block]
        y = kept[b * block : b * block + block]
        c = codes[b * width : b * width + width]
        used = min(block, count - b * block)
        if encode_block(x, None, used, c, planes, scales, b, raw, found * block, key, first + b):
            copy(x, y)
            found += 1
        else:
            decode_block(c, planes, scales, b, y)
    return found


@kernel
def encode_sum(
    scales_of_others,
    codes_of_others,
    own,
    position,
    divisor,
    total,
    kept,
    scales,
    codes,
    raw,
    block,
    planes,
    count,
    key,
    first,
):
    """Encode the sum over all ranks, in rank order, in one pass; the operands of the others have no raw blocks.

    Parameters
    ----------
    scales_of_others, codes_of_others : tuples of ndarray
        Operands of the other ranks, by rank; one or more.
    own : ndarray
        This rank's operand; may share memory with `kept`.
    position : int
        This rank.
    divisor : float
        What the sum is divided by.
    total : ndarray
        Room for the sum of one block.
    kept : ndarray or None
        Gets what `decode` will give.
    planes, count, key, first
        As for `encode`.

    Returns
    -------
    int
        Number of raw blocks.
    """
    width = block // len(planes)
    found = 0
    for b in range(len(scales)):
        x = own[b * block : b * block + block]
        c = codes_of_others[0][b * width : b * width + width]
        if position < 2:  # either order of two operands gives the same sum
            add_to_block(c, planes, scales_of_others[0], b, x, total)
        else:
            decode_block(c, planes, scales_of_others[0], b, total)
        for i in range(1, len(codes_of_others)):
            c = codes_of_others[i][b * width : b * width + width]
            add_block(c, planes, scales_of_others[i], b, 1, total)
            if i + 1 == position:
                for j in range(block):
                    total[j] += x[j]
        if divisor != 1:
            for j in range(block):
                total[j] /= divisor
        c = codes[b * width : b * width + width]
        used = min(block, count - b * block)
        # Padding is what it is for `encode`: what the operands were padded with may be decoded as something else.
        for j in range(used, block):
            total[j] = total[used - 1] if scales.ndim == 2 else 0
        travels_raw = encode_block(total, None, used, c, planes, scales, b, raw, found * block, key, first + b)
        found += travels_raw
        if kept is not None:
            y = kept[b * block : b * block + block]
            if travels_raw:
                copy(total, y)
            else:
                decode_block(c, planes, scales, b, y)
    return found


@kernel
def encode_feedback(src, residual, scales, codes, raw, block, planes, count, key, first):
    """Encode ``src + residual`` and leave in `residual` what was rounded off (nothing in raw blocks)."""
    width = block // len(planes)
    found = 0
    for b in range(len(scales)):
        x = src[b * block : b * block + block]
        e = residual[b * block : b * block + block]
        c = codes[b * width : b * width + width]
        used = min(block, count - b * block)
        if encode_block(e, x, used, c, planes, scales, b, raw, found * block, key, first + b):
            for i in range(block):
                e[i] = 0
            found += 1
        else:
            subtract_block(c, planes, scales, b, e)
    return found


@kernel
def count_raw(scales):
    """Number of NaN among `scales`."""
    found = 0
    for b in range(len(scales)):
        found += is_raw(scales, b)
    return found


@kernel
def decode(scales, codes, raw, block, planes, dst):
    """Decode into `dst`; `raw` has as many blocks as `scales` has NaN."""
    width = block // len(planes)
    found = 0
    for b in range(len(scales)):
        y = dst[b * block : b * block + block]
        if is_raw(scales, b):
            copy(raw[found * block : found * block + block], y)
            found += 1
        else:
            decode_block(codes[b * width : b * width + width], planes, scales, b, y)


@kernel
def decode_add(scales, codes, raw, block, planes, acc):
    """Decode and add to `acc`; `raw` as for `decode`."""
    width = block // len(planes)
    found = 0
    for b in range(len(scales)):
        y = acc[b * block : b * block + block]
        if is_raw(scales, b):
            x = raw[found * block : found * block + block]
            for i in range(block):
                y[i] += x[i]
            found += 1
        else:
            add_block(codes[b * width : b * width + width], planes, scales, b, 1, y)
