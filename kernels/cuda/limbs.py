"""The superaccumulator of `kernels.cpu.exact`, one element of it: `limbs` (k, 8) int64, `special` (k,) uint8."""

import numpy as np

from collcomp.kernels.cpu.exact import EMPTY, LIMBS, LOWEST
from collcomp.kernels.cuda.jit import inlined
from collcomp.kernels.cuda.significands import INFINITY, signed, significand

__all__ = ["NEGATIVE", "POSITIVE", "add_float", "add_limbs", "add_window", "of_limbs", "widen_element"]

_LIMB_BITS = 35
_LIMB_MASK = (1 << _LIMB_BITS) - 1
#: Flags in `special`.
POSITIVE, NEGATIVE, _NAN = 1, 2, 4


@inlined
def _add_at(limbs, i, place, size, negative):
    """Add or subtract `size`, of 24 bits, times ``2**place`` of the smallest unit (not below it, whatever is given)."""
    j = max(min(place // _LIMB_BITS, LIMBS - 1), 0)
    shifted = size << (place - j * _LIMB_BITS)
    if j < LIMBS - 1:
        limbs[i, j] += signed(shifted & _LIMB_MASK, negative)
        limbs[i, j + 1] += signed(shifted >> _LIMB_BITS, negative)
    else:
        limbs[i, j] += signed(shifted, negative)


@inlined
def _clear_limbs(limbs, special, i):
    special[i] = 0
    for j in range(LIMBS):
        limbs[i, j] = 0


@inlined
def add_float(limbs, special, i, size, negative):
    """Add a float32, given by its bits without the sign."""
    if size > INFINITY:
        special[i] |= np.uint8(_NAN)
    elif size == INFINITY:
        special[i] |= np.uint8(NEGATIVE if negative else POSITIVE)
    else:
        units, place = significand(size)
        _add_at(limbs, i, place, units, negative)


@inlined
def add_window(base, window, limbs, i):
    """Add a window's element to limbs: pieces of 24 bits, which do not overlap, so that they count as one addend."""
    place, size, negative = base - LOWEST, abs(window[i]), window[i] < 0
    _add_at(limbs, i, place, size & 0xFFFFFF, negative)
    _add_at(limbs, i, place + 24, (size >> 24) & 0xFFFFFF, negative)
    _add_at(limbs, i, place + 48, size >> 48, negative)


@inlined
def add_limbs(limbs_in, special_in, limbs, special, i):
    """Add other limbs."""
    special[i] |= special_in[i]
    for j in range(LIMBS):
        limbs[i, j] += limbs_in[i, j]


@inlined
def widen_element(base, window, limbs, special, i):
    """Set limbs to what a window's element is."""
    _clear_limbs(limbs, special, i)
    if base != EMPTY:
        add_window(base, window, limbs, i)


@inlined
def _is_negative(limbs, i):
    carry = np.int64(0)
    for j in range(LIMBS):
        carry = (limbs[i, j] + carry) >> _LIMB_BITS
    return carry < 0


@inlined
def of_limbs(limbs, i):
    """What an element's limbs are, as (size, unit, negative): an int64 in units of ``2**unit`` that rounds as they do.

    Of the limbs with their carries, the highest that is not 0 and the 27 bits below it have 28 bits at least. All that
    is further below is told by the last of them, which is set where there is any: it stands for no tie.
    """
    negative = _is_negative(limbs, i)
    carry = last = below = np.int64(0)
    place = high = low = rest = np.int64(0)
    for j in range(LIMBS):
        value = signed(limbs[i, j], negative) + carry
        carry = value >> _LIMB_BITS if j < LIMBS - 1 else np.int64(0)
        digit = value - (carry << _LIMB_BITS)
        if digit != 0:
            place, high, low, rest = np.int64(j), digit, last, below
        below |= last
        last = digit
    # Where the highest limb is cut off, the sum is far beyond the largest float32 either way.
    high = min(high, np.int64(_LIMB_MASK))
    lost = 1 if ((low & 0xFF) | rest) != 0 else 0
    return (high << 27) | (low >> 8) | lost, place * _LIMB_BITS - 27 + LOWEST, negative
