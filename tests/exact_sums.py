"""Correctly rounded sums, by integers of any length."""

import math

import ml_dtypes
import numpy as np

# Bits of a significand, exponents of the smallest subnormal number and of what is too large.
_FORMATS = {
    np.dtype(np.float32): (24, -149, 128),
    np.dtype(np.float16): (11, -24, 16),
    np.dtype(ml_dtypes.bfloat16): (8, -133, 128),
}
_UNIT = 149  # all numbers of these formats are multiples of 2**-149


def exact_sum(operands):
    """The sum of arrays of one shape, rounded once: to nearest, ties to even."""
    dtype = operands[0].dtype
    with np.errstate(invalid="ignore"):  # signalling NaN
        columns = zip(*(operand.reshape(-1).astype(np.float64).tolist() for operand in operands), strict=True)
    total = np.array([_rounded(column, *_FORMATS[dtype]) for column in columns], np.float64)
    return total.astype(dtype).reshape(operands[0].shape)  # exact


def _rounded(addends, bits, smallest, too_large):
    if not all(map(math.isfinite, addends)):
        found = {str(addend): addend for addend in addends if not math.isfinite(addend)}
        return next(iter(found.values())) if len(found) == 1 and "nan" not in found else math.nan
    total = sum(int(math.ldexp(addend, _UNIT)) for addend in addends)
    if total == 0:
        return -0.0 if all(math.copysign(1, addend) < 0 and addend == 0 for addend in addends) else 0.0
    size = abs(total)
    shift = max(size.bit_length() - bits, smallest + _UNIT)
    whole, rest = divmod(size, 1 << shift)
    if 2 * rest > 1 << shift or (2 * rest == 1 << shift and whole % 2):
        whole += 1
    exponent = whole.bit_length() + shift - _UNIT
    rounded = math.inf if exponent > too_large else math.ldexp(whole, shift - _UNIT)
    return math.copysign(rounded, total)
