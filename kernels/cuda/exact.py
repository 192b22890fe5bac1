"""Sums of floats that are rounded once (see `kernels.cpu.exact`): one warp a packet.

The sums of a message of n packets of `elements`, one after another, the last one cut off where the message ends. So
arrays of a packet are here those of the message: `x`, `out` (count,), `window` (count,) int64, `signs` (count,) uint8,
`limbs` (count, 8) int64, `special` (count,) uint8. `base` (n,) int32 lies on the device, too: the functions write there
what their namesakes return. A packet's arrays are read and written only as far as its base says that they are in use.

For sums of operands that arrive one after another: `first`, `add` for each of the others, `finish`.

A packet's units, and whether they fit a window, are told by integers. All that it takes to know of a packet is its
largest element and the lowest bit set in any of its elements.

Loops over elements are written out, with unsigned indices: numba's `range` and its look at the sign of every index
would cost several times what the rest of them does.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cpu.exact import EMPTY, HIGHEST, LIMBS, LOWEST, WIDE
from collcomp.kernels.cuda.jit import LANES, THREADS, grid, inlined, kernel, launch
from collcomp.kernels.cuda.limbs import (
    NEGATIVE,
    POSITIVE,
    add_float,
    add_limbs,
    add_window,
    of_limbs,
    widen_element,
)
from collcomp.kernels.cuda.primitives import bit_length, largest_of_lanes, meet, smallest_of_lanes, union_of_lanes
from collcomp.kernels.cuda.significands import INFINITY, reading, rounding, signed, significand, smallest_exponent

__all__ = ["EMPTY", "HIGHEST", "LIMBS", "LOWEST", "WIDE", "add", "add_partial", "finish", "first", "widen"]

_WARPS = THREADS // LANES
_WINDOW_BITS = 62
_SLACKS = (6, 3, 0)
#: Above the places of all bits.
_NOWHERE = np.int32(1000)


def first(x: Any, headroom: int, base: Any, window: Any, signs: Any, limbs: Any, special: Any, elements: int) -> None:
    """Start sums with `x`; `headroom` as for the CPU."""
    arrays = (base, window, signs, limbs, special)
    launch(_adder(x.dtype.type, True), _blocks(base), x, headroom, *arrays, elements)


def add(x: Any, headroom: int, base: Any, window: Any, signs: Any, limbs: Any, special: Any, elements: int) -> None:
    """Add `x` to sums."""
    arrays = (base, window, signs, limbs, special)
    launch(_adder(x.dtype.type, False), _blocks(base), x, headroom, *arrays, elements)


def add_partial(
    base_in: Any,
    window_in: Any,
    signs_in: Any,
    limbs_in: Any,
    special_in: Any,
    headroom: int,
    base: Any,
    window: Any,
    signs: Any,
    limbs: Any,
    special: Any,
    elements: int,
) -> None:
    """Add other sums, of packets of the same lengths; new sums have all of `base` `EMPTY`, and all of `signs` 1."""
    given = (base_in, window_in, signs_in, limbs_in, special_in)
    launch(_partial_adder(), _blocks(base), given, headroom, base, window, signs, limbs, special, elements)


def widen(base: Any, window: Any, limbs: Any, special: Any, elements: int) -> None:
    """Have all sums held in limbs."""
    launch(_widener(), _blocks(base), base, window, limbs, special, elements)


def finish(base: Any, window: Any, signs: Any, limbs: Any, special: Any, out: Any, elements: int) -> None:
    """Write the rounded sums into `out`."""
    launch(_finisher(out.dtype.type), _blocks(base), base, window, signs, limbs, special, out, elements)


def _blocks(base: Any) -> int:
    return grid(-(-len(base) // _WARPS))


# ---------------------------------------------------------------------- bases


@inlined
def _above(largest):
    """The exponent of a power of two above a finite number, given by its bits."""
    return max(largest >> 23, 1) - 126


@inlined
def _above_window(base, union):
    """The exponent of a power of two above all of a window, of whose magnitudes this is the union of bits.

    One more than need be where the float64 next to the union, which the CPU asks, is a power of two.
    """
    length = bit_length(union)
    if length > 53 and union >> (length - 54) == (1 << 54) - 1:
        length += 1
    return base + length if union != 0 else LOWEST


@inlined
def _base_for(above, headroom, slack):
    """The base of a window for numbers below ``2**above``, and for later ones that are `slack` bits larger."""
    return above + slack + headroom - _WINDOW_BITS


@inlined
def _fits(largest, lowest, headroom, base):
    """Whether a window has room for a packet with this largest element, and this place of the lowest bit."""
    within = largest < INFINITY and _above(largest) <= base + _WINDOW_BITS - headroom
    return largest == 0 or (within and lowest >= base - LOWEST)


@inlined
def _first_base(largest, lowest, headroom, smallest):
    """Of a sum that a packet starts."""
    if largest == 0:
        return EMPTY
    if largest < INFINITY:
        for slack in _SLACKS:
            base = max(_base_for(_above(largest), headroom, slack), smallest)
            if _fits(largest, lowest, headroom, base):
                return base
    return WIDE


@inlined
def _lower_base(largest, lowest, headroom, smallest, base, above_window):
    """Of a narrow sum where a packet does not fit the window; what was added so far counts as one addend."""
    if largest < INFINITY:
        above = max(_above(largest), above_window)
        for slack in _SLACKS:
            lower = max(_base_for(above, headroom, slack), smallest)
            if lower < base:
                base = lower
                if _fits(largest, lowest, headroom, base):
                    return base
    return WIDE


@inlined
def _window_fits(union, base_in, headroom, base):
    """Whether a window has room for another, of whose magnitudes this is the union of bits."""
    lowest, highest = base_in + bit_length(union & -union) - 1, base_in + bit_length(union)
    return union == 0 or (base <= lowest and highest <= base + _WINDOW_BITS - headroom)


# ---------------------------------------------------------------------- elements


@inlined
def _moved(units, places):
    """Units times ``2**places``, where that is exact; zero may be moved by any number of places."""
    return units << min(places, 63) if places >= 0 else units >> min(-places, 63)


@inlined
def _union(window, begin, end):
    """The bits that are set in some magnitude of a packet's window, by a warp whose lanes begin at `begin`."""
    union, i = np.int64(0), begin
    while i < end:
        union |= abs(window[np.uint64(i)])
        i += LANES
    return union_of_lanes(union)


# ---------------------------------------------------------------------- kernels


@functools.cache
def _adder(kind, fresh):
    read, smallest = reading(kind), smallest_exponent(kind)

    @inlined
    def keep_sign(signs, i, negative):
        if fresh:
            signs[i] = np.uint8(negative)
        elif not negative and signs[i] != 0:  # of most sums nothing needs to be written
            signs[i] = 0

    @kernel
    def adder(x, headroom, base, window, signs, limbs, special, elements):
        lane = cuda.threadIdx.x % LANES
        for packet in range(cuda.grid(1) // LANES, len(base), cuda.gridsize(1) // LANES):
            begin, end = packet * elements + lane, min((packet + 1) * elements, x.size)
            largest, lowest, i = np.int32(0), _NOWHERE, begin
            while i < end:
                size, _ = read(x, np.uint64(i))
                largest = max(largest, np.int32(size))
                units, place = significand(size)
                low = place + bit_length(np.int32(units & -units)) - 1
                lowest = min(lowest, np.int32(low) if size != 0 else _NOWHERE)
                i += LANES
            largest, lowest = np.int64(largest_of_lanes(largest)), np.int64(smallest_of_lanes(lowest))

            held = EMPTY if fresh else np.int64(base[packet])
            new = held
            if held == EMPTY:
                new = _first_base(largest, lowest, headroom, smallest)
            elif held != WIDE and not _fits(largest, lowest, headroom, held):
                above = _above_window(held, _union(window, begin, end))
                new = _lower_base(largest, lowest, headroom, smallest, held, above)
            meet()  # all lanes have read the base
            if lane == 0:
                base[packet] = new

            i = begin
            if new == EMPTY:
                while i < end:
                    at = np.uint64(i)
                    _, negative = read(x, at)
                    keep_sign(signs, at, negative)
                    i += LANES
            elif new == WIDE:
                while i < end:
                    at = np.uint64(i)
                    size, negative = read(x, at)
                    keep_sign(signs, at, negative)
                    if held != WIDE:
                        widen_element(held, window, limbs, special, at)
                    add_float(limbs, special, at, size, negative)
                    i += LANES
            else:
                while i < end:
                    at = np.uint64(i)
                    size, negative = read(x, at)
                    keep_sign(signs, at, negative)
                    units, place = significand(size)
                    total = signed(_moved(units, place + LOWEST - new), negative)
                    if held != EMPTY:
                        total += window[at] << (held - new)
                    window[at] = total
                    i += LANES

    return adder


@functools.cache
def _partial_adder():
    @kernel
    def adder(given, headroom, base, window, signs, limbs, special, elements):
        base_in, window_in, signs_in, limbs_in, special_in = given
        lane = cuda.threadIdx.x % LANES
        for packet in range(cuda.grid(1) // LANES, len(base), cuda.gridsize(1) // LANES):
            begin, end = packet * elements + lane, min((packet + 1) * elements, signs.size)
            source, old = np.int64(base_in[packet]), np.int64(base[packet])
            i = begin
            while i < end:
                if signs_in[np.uint64(i)] == 0:
                    signs[np.uint64(i)] = 0
                i += LANES
            if source == EMPTY:
                continue

            new = old
            if source == WIDE or old == WIDE:
                new = WIDE
            else:
                union = _union(window_in, begin, end)
                if old == EMPTY:
                    new = source
                elif not _window_fits(union, source, headroom, old):
                    above = max(_above_window(source, union), _above_window(old, _union(window, begin, end)))
                    new = min(old, max(_base_for(above, headroom, 0), source))
                if not _window_fits(union, source, headroom, new):
                    new = WIDE
            meet()  # all lanes have read the base
            if lane == 0:
                base[packet] = new

            i = begin
            while i < end:
                at = np.uint64(i)
                if new == WIDE:
                    if old != WIDE:
                        widen_element(old, window, limbs, special, at)
                    if source != WIDE:
                        add_window(source, window_in, limbs, at)
                    else:
                        add_limbs(limbs_in, special_in, limbs, special, at)
                else:
                    total = _moved(window_in[at], source - new)
                    if old != EMPTY:
                        total += window[at] << (old - new)
                    window[at] = total
                i += LANES

    return adder


@functools.cache
def _widener():
    @kernel
    def widener(base, window, limbs, special, elements):
        lane = cuda.threadIdx.x % LANES
        for packet in range(cuda.grid(1) // LANES, len(base), cuda.gridsize(1) // LANES):
            held = np.int64(base[packet])
            if held == WIDE:
                continue
            meet()  # all lanes have read the base
            if lane == 0:
                base[packet] = WIDE
            i, end = packet * elements + lane, min((packet + 1) * elements, special.size)
            while i < end:
                widen_element(held, window, limbs, special, np.uint64(i))
                i += LANES

    return widener


@functools.cache
def _finisher(kind):
    nearest, special_of = rounding(kind)

    @kernel
    def finisher(base, window, signs, limbs, special, out, elements):
        lane = cuda.threadIdx.x % LANES
        for packet in range(cuda.grid(1) // LANES, len(base), cuda.gridsize(1) // LANES):
            held = np.int64(base[packet])
            i, end = packet * elements + lane, min((packet + 1) * elements, out.size)
            while i < end:
                at = np.uint64(i)
                flags = special[at] if held == WIDE else np.uint8(0)
                if flags != 0:
                    out[at] = special_of(flags != POSITIVE and flags != NEGATIVE, flags == NEGATIVE)
                else:
                    size, unit, negative = np.int64(0), held, False
                    if held == WIDE:
                        size, unit, negative = of_limbs(limbs, at)
                    elif held != EMPTY:
                        size, negative = abs(window[at]), window[at] < 0
                    if size == 0:
                        negative = signs[at] != 0
                    out[at] = nearest(size, unit, negative)
                i += LANES

    return finisher
