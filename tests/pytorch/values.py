"""Operands of ranks as tensors, what NumPy's references of them are, and what codecs promise."""

import torch
from helpers import UNIT, assert_within, loss, operands, peak, reduction_bound, reference

from collcomp.buffers import as_buffer
from collcomp.codecs.base import working_dtype


def tensor_of(array):
    """A tensor with the values of a NumPy array, bfloat16 too."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("i2").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def array_of(tensor):
    """The other way round, in the order of its indices."""
    return as_buffer(tensor.detach().contiguous(), "tensor").flat.reshape(tuple(tensor.shape))


def bits(tensor):
    """What has to be equal on all ranks."""
    return array_of(tensor).tobytes()


def given(rank, size, count, dtype, seed=0):
    """The operand of `rank`, and all of them as arrays."""
    xs = operands(size, count, dtype, seed)
    return tensor_of(xs[rank]), xs


def check_reduced(tensor, spec, xs, op="sum", part=slice(None)):
    """`tensor` is a part of the reduction of `xs`, as exact as `spec` promises."""
    bound = reduction_bound(spec, xs, op, "direct", xs[0].dtype)
    assert_within(
        array_of(tensor).reshape(-1), reference(xs, op)[part], bound, f"{spec} {op} {xs[0].size} {xs[0].dtype}"
    )


def check_moved(tensor, spec, x):
    """`tensor` is `x` after it was sent once, as exact as `spec` promises."""
    dtype = x.dtype
    largest = peak(x)
    error = loss(spec, largest, dtype) + 2 * UNIT[working_dtype(dtype)] * largest
    if working_dtype(dtype) != dtype:
        error += UNIT[dtype] * (largest + error) + 2.0**-24
    assert_within(array_of(tensor).reshape(-1), x.reshape(-1).astype(float), error, f"{spec} {x.size} {dtype}")
