"""Sums of floats that are rounded once: the bits of the result do not depend on the order of the addends.

One sum of `k` elements is held in one of two ways:

- narrow: `window` (k,) int64, in units of ``2**base``, while every addend is a multiple of that and not too large;
- wide (`base` is `WIDE`): `limbs` (k, 8) int64, a superaccumulator. Limb j counts units of ``2**(35 * j - 149)``, so
  that 8 of them reach from the smallest subnormal float32 past the largest number. No addend changes a limb by
  ``2**35``, so that carries can wait for `finish` up to ``2**28`` addends. `special` (k,) uint8 says which of infinity,
  minus infinity and NaN were among the addends.

`base` is `EMPTY` while all addends were zeros; then `window` is not read either. `signs` (k,) uint8 is 1 while all
addends had their sign set: what makes a sum of zeros -0.0. Callers allocate the arrays and need not clear them; the
wide ones are touched by wide sums only. A wide sum may be handled in slices of all its arrays, one after the other.

The dtype of the packets `x` and of `out` (k,) tells their format: float32, uint16 for the bits of IEEE float16, int16
for the bits of bfloat16.

A sum is what IEEE 754 makes of exact arithmetic and one rounding to nearest, ties to even: NaN (the positive quiet one
without payload) from any NaN or from infinities of both signs, else the infinity among the addends; -0.0 from addends
that are all -0.0, else +0.0 where they cancel; infinity where the rounded sum is too large.

Source of the superaccumulator: Neal, "Fast exact summation using small and large superaccumulators", 2015 (here of
signed limbs, with carries delayed by their number of spare bits).
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from collcomp.kernels.cpu.bits import (
    bfloat16_to_float32,
    float16_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
    from_magnitude,
    magnitude,
    narrow_to_odd,
    sign_bit,
)
from collcomp.kernels.cpu.common import copy
from collcomp.kernels.cpu.jit import INLINED, inlined, kernel

__all__ = [
    "EMPTY", "HIGHEST", "LIMBS", "LOWEST", "WIDE", "add", "add_partial", "finish", "first", "widen",
]  # fmt: skip

#: In place of a base: all addends were zeros; the sum is in `limbs`.
EMPTY, WIDE = 1000, 1001
#: Limbs of an element.
LIMBS = 8
_LIMB_BITS = 35
_LIMB_MASK = (1 << _LIMB_BITS) - 1
#: Exponent of the smallest subnormal float32.
LOWEST, HIGHEST = -149, 127
#: |window| stays below 2 to this power.
_WINDOW_BITS = 62
#: By how many bits later addends may be larger: as many of these as small ones leave.
_SLACKS = (6, 3, 0)
_INFINITY = 0x7F800000
#: Flags in `special`.
_POSITIVE, _NEGATIVE, _NAN = 1, 2, 4


@intrinsic
def _truncate(typing_context, x, limit):
    """Float64 `x` without its fraction, as int64; 0 unless its magnitude is below `limit`, at most ``2**63``."""
    f64, i64 = ir.DoubleType(), ir.IntType(64)

    def generate(context, builder, signature, args):
        size = builder.bitcast(builder.and_(builder.bitcast(args[0], i64), ir.Constant(i64, 0x7FFFFFFFFFFFFFFF)), f64)
        fits = builder.fcmp_ordered("<", size, args[1])
        return builder.fptosi(builder.select(fits, args[0], ir.Constant(f64, 0.0)), i64)

    return types.int64(types.float64, types.float64), generate


def _value(code):
    """What is meant by an element of a packet, in float32."""
    raise NotImplementedError


@overload(_value, jit_options=INLINED)
def _value_overload(code):
    if code == types.float32:
        return lambda code: code
    if code == types.uint16:
        return lambda code: float16_to_float32(code)
    return lambda code: bfloat16_to_float32(code)


def _smallest(x):
    """Exponent of the smallest subnormal number of the format of `x`."""
    raise NotImplementedError


@overload(_smallest, jit_options=INLINED)
def _smallest_overload(x):
    smallest = {types.float32: LOWEST, types.uint16: -24, types.int16: -133}[x.dtype]
    return lambda x: smallest


def _nearest(x, out):
    """Float64 `x` in the format of `out`, rounded once: to nearest, ties to even."""
    raise NotImplementedError


@overload(_nearest, jit_options=INLINED)
def _nearest_overload(x, out):
    if out.dtype == types.float32:
        return lambda x, out: np.float32(x)
    if out.dtype == types.uint16:
        return lambda x, out: float32_to_float16(narrow_to_odd(x))
    return lambda x, out: float32_to_bfloat16(narrow_to_odd(x))


@inlined
def _power(exponent):
    """``2.0**exponent``, for normal float64."""
    return from_magnitude(np.int64(exponent + 1023) << 52)


@inlined
def _as_float64(total):
    """A float64 that rounds to 24 bits or fewer as int64 `total`, below ``2**62``, does.

    Integers up to ``2**53`` are exact. In larger ones, the last 10 bits become 512 unless they are 0: then 53 bits are
    enough. Floats of 24 bits, and ties between them, are multiples of ``2**29`` there, so the result lies on the same
    side of each.
    """
    some = (((total & 1023) + 1023) & 1024) >> 1
    coarse = (total & -1024) | some
    return np.float64(total if -(1 << 53) <= total <= 1 << 53 else coarse)


@inlined
def _keep_signs(x, signs):
    for i in range(signs.size):
        signs[i] &= np.uint8(sign_bit(_value(x[i])))


@inlined
def _largest(x):
    """The largest `magnitude` in a packet, in float32; 0 of an empty one."""
    largest = np.int32(0)
    for i in range(x.size):
        largest = max(largest, magnitude(_value(x[i])))
    return largest


@inlined
def _above(largest):
    """The exponent of a power of two above a finite number, given by its `magnitude`."""
    return max(np.int64(largest) >> 23, 1) - 126


@inlined
def _above_window(base, window):
    """The exponent of a power of two above all of `window`."""
    bits = np.int64(0)
    for i in range(window.size):
        bits |= abs(window[i])
    return base + (magnitude(np.float64(bits)) >> 52) - 1022 if bits else LOWEST


@inlined
def _base_for(above, headroom, slack):
    """The base of a window for numbers below ``2**above``, and for later ones that are `slack` bits larger."""
    return above + slack + headroom - _WINDOW_BITS


@inlined
def _clear_limbs(limbs, special):
    for i in range(special.size):
        special[i] = 0
        for j in range(LIMBS):
            limbs[i, j] = 0


@inlined
def _add_at(limbs, i, place, size, negative):
    """Add or subtract `size`, of 24 bits, times ``2**place`` of the smallest unit.

    What exceeds the highest limb stays there: it has 28 bits to spare.
    """
    j = min(place // _LIMB_BITS, LIMBS - 1)
    shifted = size << (place - j * _LIMB_BITS)
    high = shifted >> _LIMB_BITS if j < LIMBS - 1 else 0
    low = shifted - (high << _LIMB_BITS)
    limbs[i, j] += -low if negative else low
    limbs[i, min(j + 1, LIMBS - 1)] += -high if negative else high


@inlined
def _add_wide(x, limbs, special):
    for i in range(special.size):
        value = _value(x[i])
        size, negative = np.int64(magnitude(value)), sign_bit(value) != 0
        exponent = size >> 23
        if size >= _INFINITY:
            special[i] |= _NAN if size > _INFINITY else (_NEGATIVE if negative else _POSITIVE)
        elif exponent == 0:
            _add_at(limbs, i, 0, size, negative)
        else:
            _add_at(limbs, i, exponent - 1, (size & 0x7FFFFF) | 0x800000, negative)


@inlined
def _add_window_wide(base, window, limbs):
    """Add a window to limbs: pieces of 24 bits, which do not overlap, so that they count as one addend."""
    place = base - LOWEST
    for i in range(window.size):
        size, negative = abs(window[i]), window[i] < 0
        _add_at(limbs, i, place, size & 0xFFFFFF, negative)
        _add_at(limbs, i, place + 24, (size >> 24) & 0xFFFFFF, negative)
        _add_at(limbs, i, place + 48, size >> 48, negative)


@inlined
def _add_narrow(x, base, headroom, window, fresh):
    """Add `x` to `window`, or, if that is `fresh`, set it to `x`; False, and nothing is added, if `x` does not fit."""
    scale, limit = _power(-base), _power(_WINDOW_BITS - headroom)
    misfits = 0
    for i in range(window.size):
        # Exact: a float32 times a power of two is a normal float64 or 0.
        scaled = np.float64(_value(x[i])) * scale
        units = _truncate(scaled, limit)
        window[i] = units if fresh else window[i] + units
        misfits |= np.float64(units) != scaled
    if misfits != 0 and not fresh:
        for i in range(window.size):
            window[i] -= _truncate(np.float64(_value(x[i])) * scale, limit)
    return misfits == 0


@inlined
def _lower(base, lower, window):
    """Count `window` in the smaller units of ``2**lower``; return the new base."""
    for i in range(window.size):
        window[i] <<= base - lower
    return lower


@inlined
def _begin(x, headroom, window, limbs, special):
    """Start with `x`, where there were zeros only."""
    largest = _largest(x)
    if largest == 0:
        return EMPTY
    if largest < _INFINITY:
        for slack in _SLACKS:
            base = max(_base_for(_above(largest), headroom, slack), _smallest(x))
            if _add_narrow(x, base, headroom, window, True):
                return base
    _clear_limbs(limbs, special)
    _add_wide(x, limbs, special)
    return WIDE


@kernel
def first(x, headroom, window, signs, limbs, special):
    """Start a sum with packet `x`.

    Parameters
    ----------
    headroom : int
        0 to 28; at most ``2**headroom`` packets and partial sums are added in all. In a tree of switches, give a leaf
        that of the workers of the whole tree, and each other switch that of what it adds itself: so partial sums fit
        the windows higher up. (Where they do not, they make the sums there wide.)

    Returns
    -------
    int
        `base`, to be passed with the next packet.
    """
    for i in range(signs.size):
        signs[i] = np.uint8(sign_bit(_value(x[i])))
    return _begin(x, headroom, window, limbs, special)


@kernel
def add(x, headroom, base, window, signs, limbs, special):
    """Add packet `x` to a sum; return its new `base`. Parameters as in `first`."""
    _keep_signs(x, signs)
    if base == EMPTY:
        return _begin(x, headroom, window, limbs, special)
    if base != WIDE:
        if _add_narrow(x, base, headroom, window, False):
            return base
        largest = _largest(x)
        if largest < _INFINITY:
            above = max(_above(largest), _above_window(base, window))
            for slack in _SLACKS:
                # What was added so far counts as one addend, which is as small as each has to be.
                lower = max(_base_for(above, headroom, slack), _smallest(x))
                if lower < base:
                    base = _lower(base, lower, window)
                    if _add_narrow(x, base, headroom, window, False):
                        return base
        _clear_limbs(limbs, special)
        _add_window_wide(base, window, limbs)
    _add_wide(x, limbs, special)
    return WIDE


@inlined
def _align(units, left, right, limit):
    """A number of a window in units that are ``2**(right - left)`` times as large; 0 if it does not fit there."""
    aligned = (units >> right) << left
    fits = (aligned >> left << right == units) & (-limit < aligned) & (aligned < limit)
    return aligned if fits else 0


@inlined
def _add_partial_narrow(base_in, window_in, base, headroom, window):
    """As `_add_narrow`, for another window."""
    left, right = min(max(base_in - base, 0), 63), min(max(base - base_in, 0), 63)
    limit = np.int64(1) << (_WINDOW_BITS - headroom)
    misfits = 0
    for i in range(window.size):
        units = _align(window_in[i], left, right, limit)
        window[i] += units
        misfits |= units >> left << right != window_in[i]
    if misfits != 0:
        for i in range(window.size):
            window[i] -= _align(window_in[i], left, right, limit)
    return misfits == 0


@inlined
def _begin_partial(base_in, window_in, limbs_in, special_in, headroom, window, limbs, special):
    """Start with a partial sum, where there were zeros only."""
    if base_in == EMPTY:
        return EMPTY
    if base_in == WIDE:
        copy(special_in, special)
        for i in range(special.size):
            for j in range(LIMBS):
                limbs[i, j] = limbs_in[i, j]
        return WIDE
    limit = np.int64(1) << (_WINDOW_BITS - headroom)
    misfits = 0
    for i in range(window.size):
        window[i] = window_in[i]
        misfits |= (window_in[i] <= -limit) | (window_in[i] >= limit)
    if misfits == 0:
        return base_in
    _clear_limbs(limbs, special)
    _add_window_wide(base_in, window_in, limbs)
    return WIDE


@kernel
def add_partial(base_in, window_in, signs_in, limbs_in, special_in, headroom, base, window, signs, limbs, special):
    """Add the partial sum of another switch; return the new `base`.

    Parameters
    ----------
    base_in : int
        `EMPTY`, `WIDE`, or `LOWEST` to `HIGHEST`; what came over a network is checked by the caller.
    window_in, signs_in, limbs_in, special_in : ndarray
        The arrays of the other sum, of the same count; of `window_in` and the pair of `limbs_in` and `special_in`,
        what `base_in` says is not in use may be empty.
    headroom : int
        As in `first`: here partial sums count, one each, in the switch that adds them.
    base : int
        Of this sum; a new one is `EMPTY`, with all of `signs` 1.
    """
    for i in range(signs.size):
        signs[i] &= signs_in[i]
    if base_in == EMPTY:
        return base
    if base == EMPTY:
        return _begin_partial(base_in, window_in, limbs_in, special_in, headroom, window, limbs, special)
    if base != WIDE:
        if base_in != WIDE:
            if _add_partial_narrow(base_in, window_in, base, headroom, window):
                return base
            above = max(_above_window(base_in, window_in), _above_window(base, window))
            lower = max(_base_for(above, headroom, 0), base_in)
            if lower < base:
                base = _lower(base, lower, window)
                if _add_partial_narrow(base_in, window_in, base, headroom, window):
                    return base
        _clear_limbs(limbs, special)
        _add_window_wide(base, window, limbs)
    if base_in != WIDE:
        _add_window_wide(base_in, window_in, limbs)
        return WIDE
    for i in range(special.size):
        special[i] |= special_in[i]
        for j in range(LIMBS):
            limbs[i, j] += limbs_in[i, j]
    return WIDE


@kernel
def widen(base, window, limbs, special):
    """Have a sum held in limbs; return `WIDE`, its new base."""
    if base != WIDE:
        _clear_limbs(limbs, special)
        if base != EMPTY:
            _add_window_wide(base, window, limbs)
    return WIDE


@inlined
def _is_negative(limbs, i):
    carry = np.int64(0)
    for j in range(LIMBS):
        carry = (limbs[i, j] + carry) >> _LIMB_BITS
    return carry < 0


@inlined
def _limbs_as_float64(limbs, i):
    """A float64 that rounds to 24 bits or fewer as the sum does.

    Of the limbs with their carries, the highest that is not 0 and the 27 bits below it have 28 bits at least. All that
    is further below is told by the last of them, which is set where there is any: it stands for no tie.
    """
    negative = _is_negative(limbs, i)
    carry = last = below = np.int64(0)
    place = high = low = rest = np.int64(0)
    for j in range(LIMBS):
        value = (-limbs[i, j] if negative else limbs[i, j]) + carry
        carry = value >> _LIMB_BITS if j < LIMBS - 1 else np.int64(0)
        digit = value - (carry << _LIMB_BITS)
        if digit != 0:
            place, high, low, rest = np.int64(j), digit, last, below
        below |= last
        last = digit
    # Where the highest limb is cut off, the sum is far beyond the largest float32 either way.
    high = min(high, np.int64(_LIMB_MASK))
    lost = (low & 0xFF) | rest
    total = (high << 27) | (low >> 8) | (1 if lost != 0 else 0)
    size = _as_float64(total) * _power(place * _LIMB_BITS - 27 + LOWEST)
    return -size if negative else size


@kernel
def finish(base, window, signs, limbs, special, out):
    """Write the rounded sums into `out`.

    `_nearest` is the only rounding: what it is given is exact, or rounds as the exact sum does. That holds for
    subnormal results, too: every sum of a format's numbers is a multiple of its smallest subnormal, so such a result
    has fewer than 24 bits, which both helpers keep.
    """
    if base == WIDE:
        for i in range(out.size):
            flags = np.int64(special[i])
            total = _limbs_as_float64(limbs, i)
            if total == 0 and signs[i] != 0:
                total = -0.0
            if flags != 0:
                total = np.inf if flags == _POSITIVE else (-np.inf if flags == _NEGATIVE else np.nan)
            out[i] = _nearest(total, out)
    elif base == EMPTY:
        for i in range(out.size):
            out[i] = _nearest(-0.0 if signs[i] != 0 else 0.0, out)
    else:
        scale = _power(base)
        for i in range(out.size):
            total = _as_float64(window[i]) * scale
            if window[i] == 0 and signs[i] != 0:
                total = -0.0
            out[i] = _nearest(total, out)
