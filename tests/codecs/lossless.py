"""Values of every kind and dtype, for codecs that keep every bit."""

import ml_dtypes
import numpy as np
from checks import encode, normal, same_bits

from collcomp.frame import DTYPES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ALL_DTYPES = tuple(DTYPES.values())


def is_float(dtype):
    """Whether `dtype` has exponents."""
    return dtype.kind == "f" or dtype == BFLOAT16


def kinds(count, dtype):
    """Arrays of `count` elements: normal, any bits at all, mostly zeros, constant, counting, NaN and infinities."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(count)
    with np.errstate(all="ignore"):
        yield normal(count).astype(dtype)
        if dtype != np.bool_:
            yield rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8).view(dtype)
        yield np.where(rng.random(count) < 0.95, 0, normal(count)).astype(dtype)
        yield np.full(count, 1.5).astype(dtype)
        yield np.arange(count).astype(dtype)
    if is_float(dtype):
        x = normal(count, seed=1).astype(dtype)
        x[::7] = np.nan
        x[::11] = -np.inf
        x[::13] = -0.0
        yield x
        quiet_and_signalling = np.full(count, np.nan, dtype).view(f"u{dtype.itemsize}")
        quiet_and_signalling ^= rng.integers(0, 8, count).astype(quiet_and_signalling.dtype)
        yield quiet_and_signalling.view(dtype)


def check_every_bit(codec, counts=(0, 1, 5, 31, 33, 511, 512, 513, 1023, 1025, 3000), dtypes=ALL_DTYPES):
    """Whatever goes in comes out."""
    for dtype in dtypes:
        for count in counts:
            for x in kinds(count, dtype):
                decoded = np.zeros_like(x)
                codec.decode(encode(codec, x), decoded)
                assert same_bits(decoded, x), (codec.spec, dtype, count)
