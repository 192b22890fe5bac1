"""Rows that repeat an earlier one, bit by bit.

`rows` (n * width,) uint32 are n rows of `width` words. They become the *kept* rows, in order, and a reference for each
row, uint16: 0 for a kept row, else how many kept rows back from here its equal stands.

The kept rows are found and put back in place: a kept row's number is never larger than that of a row that refers to it.
"""

import numpy as np

from collcomp.kernels.cpu.bits import from_magnitude
from collcomp.kernels.cpu.common import largest_magnitude
from collcomp.kernels.cpu.jit import inlined, kernel

__all__ = ["count_kept", "keep", "snap", "spread"]

#: Kept rows that a reference reaches back.
_WINDOW = 65535
#: Neighbours in the table that are looked at; the last one is given up for a new row.
_PROBES = 4


@kernel
def snap(src, grid, width, dst):
    """Round each row of `width` elements to the fine grid, as `bounded.decode` gives it back, where it fits there."""
    for start in range(0, src.size, width):
        x, y = src[start : start + width], dst[start : start + width]
        if from_magnitude(largest_magnitude(x)) <= grid[2, 0]:
            step, inverse, zero = grid[0, 0], grid[1, 0], src.dtype.type(0)
            for i in range(x.size):
                y[i] = np.rint(x[i] * inverse) * step + zero  # no -0.0
        else:
            for i in range(x.size):
                y[i] = x[i]


@inlined
def _hash(row, factors):
    total = np.uint64(0)
    for i in range(row.size):
        total += np.uint64(row[i]) * factors[i]
    return (total ^ (total >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)


@inlined
def _equal(x, y):
    different = np.uint32(0)
    for i in range(x.size):
        different |= x[i] ^ y[i]
    return different == 0


@kernel
def keep(rows, factors, table, references):
    """Move the kept rows to the front of `rows` and write all `references`; returns how many are kept.

    `factors` (width,) are random odd uint64, `table` is full of -1, and as long as a power of two.
    """
    width = factors.size
    kept = 0
    for r in range(references.size):
        row = rows[r * width : r * width + width]
        first = np.int64(_hash(row, factors) >> np.uint64(33))
        place = back = 0
        for probe in range(_PROBES):
            place = (first + probe) & (table.size - 1)
            candidate = np.int64(table[place])
            if candidate < 0 or kept - candidate > _WINDOW:
                break
            if _equal(row, rows[candidate * width : candidate * width + width]):
                back = kept - candidate
                break
        references[r] = back
        if back == 0:
            if kept < r:
                target = rows[kept * width : kept * width + width]
                for i in range(width):
                    target[i] = row[i]
            table[place] = kept
            kept += 1
    return kept


@kernel
def count_kept(references):
    """Number of kept rows; -1 where a reference reaches back too far."""
    kept = 0
    for r in range(references.size):
        if references[r] == 0:
            kept += 1
        elif references[r] > kept:
            return -1
    return kept


@kernel
def spread(rows, width, kept, references):
    """Undo `keep`, once `count_kept` has found the references right."""
    for r in range(references.size - 1, -1, -1):
        source = kept - np.int64(references[r])
        if references[r] == 0:
            kept -= 1
            source = kept
        if source != r:
            x, y = rows[source * width : source * width + width], rows[r * width : r * width + width]
            for i in range(width):
                y[i] = x[i]
