"""Low-bit codes with a residual that decays and is kept in 8-bit codes: one pass over both."""

from collcomp.kernels.cpu.blocks import add_block, add_to_block, encode_block, subtract_block
from collcomp.kernels.cpu.jit import kernel

__all__ = ["encode_feedback"]


@kernel
def encode_feedback(
    src, residual, residual_scales, beta, work, scales, codes, raw, block, planes, residual_planes, count, first
):
    """Encode ``h = src + e``, where e is the residual, and make it ``beta * e + (1 - beta) * (h - what was sent)``.

    Parameters
    ----------
    src, scales, codes, raw, block, planes, count, first
        As in `quantised.encode`.
    residual, residual_scales : ndarray
        As `codes` and `scales` of blocks without offsets, of which none is raw.
    beta : float
        Of the dtype of `src`.
    work : ndarray, shape (block,)
        Of the dtype of `src`.
    residual_planes : tuple
        As `planes`, for `residual`.

    Returns
    -------
    int
        Number of raw blocks. They lost nothing, so their residual becomes ``beta * e``.
    """
    width, residual_width = block // len(planes), block // len(residual_planes)
    rest = src.dtype.type(1) - beta
    found = 0
    for b in range(len(scales)):
        x = src[b * block : b * block + block]
        e = residual[b * residual_width : (b + 1) * residual_width]
        c = codes[b * width : b * width + width]
        used = min(block, count - b * block)
        add_to_block(e, residual_planes, residual_scales, b, x, work)
        if encode_block(work, None, used, c, planes, scales, b, raw, found * block, None, first + b):
            found += 1
            for i in range(block):
                work[i] = 0
        else:
            subtract_block(c, planes, scales, b, work)
            for i in range(block):
                work[i] *= rest
        add_block(e, residual_planes, residual_scales, b, beta, work)
        # What is too small or too large for a scale is dropped: its codes are zero.
        if encode_block(work, None, used, e, residual_planes, residual_scales, b, work, 0, None, 0):
            residual_scales[b] = 0
    return found
