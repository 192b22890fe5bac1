"""What encoders of blocks encode, and what becomes of it, by mode.

===========  ==============================  =======================================================
mode         element i of what is encoded    what becomes of it
===========  ==============================  =======================================================
``encode``   that of ``arrays[0]``           nothing
``keep``     likewise                        ``arrays[1]`` gets what it will be decoded as
``feedback`` that of ``arrays[0]`` and       ``arrays[1]`` gets what was rounded off
             of ``arrays[1]``, added
``sum``      that of all ranks, added in     ``arrays[1]`` gets what it will be decoded as
             their order, and divided
===========  ==============================  =======================================================

`arrays` goes on, where ranks are summed, with what `part` reads of the others, then position, divisor and block size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from collcomp.kernels.cuda.jit import inlined

__all__ = ["IN_PLACE", "fetching", "settling", "storing", "with_nan_of"]

#: Modes in which sums are left in ``arrays[1]`` until all of a block's are known.
IN_PLACE = ("feedback", "sum")


@inlined
def with_nan_of(x, total):
    """`total`, a sum of `x` and finite numbers: where `x` is NaN, that very NaN, as CPUs have it and devices do not."""
    return x if np.isnan(x) else total


def fetching(mode: str, part: Callable) -> Callable:
    """A function of (arrays, i): element i of what is encoded.

    Parameters
    ----------
    part : function
        Of (scales, codes, block, count, i): element i of a message of so many that another rank has encoded.
    """
    if mode == "feedback":

        @inlined
        def fetch(arrays, i):
            return with_nan_of(arrays[0][i], arrays[1][i] + arrays[0][i])

    elif mode == "sum":

        @inlined
        def fetch(arrays, i):
            own, _, scales, codes, position, divisor, block = arrays
            total = part(scales[0], codes[0], block, own.size, i)
            if position < 2:  # either order of two operands gives the same sum
                total = own[i] + total
            for rank in range(1, len(scales)):
                total += part(scales[rank], codes[rank], block, own.size, i)
                if rank + 1 == position:
                    total += own[i]
            if divisor != 1:
                total /= divisor
            return with_nan_of(own[i], total)

    else:

        @inlined
        def fetch(arrays, i):
            return arrays[0][i]

    return fetch


def storing(mode: str) -> Callable:
    """A function of (arrays, i, x): leaves element `x` in ``arrays[1]``, in those modes that sum."""
    if mode not in IN_PLACE:

        @inlined
        def store(arrays, i, x):
            pass

        return store

    @inlined
    def store(arrays, i, x):
        arrays[1][i] = x

    return store


def settling(mode: str) -> Callable:
    """A function of (dst, i, given, decoded): what becomes of element i."""
    assert mode in ("encode", "keep", "feedback", "sum"), mode
    if mode == "encode":

        @inlined
        def settle(dst, i, given, decoded):
            pass

    elif mode == "feedback":

        @inlined
        def settle(dst, i, given, decoded):
            dst[i] = given - decoded

    else:

        @inlined
        def settle(dst, i, given, decoded):
            dst[i] = decoded

    return settle
