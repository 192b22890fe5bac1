"""The payload of a selection of a message's elements: their values, then their indices in few bytes.

The header's `extra` holds their number in its low 32 bits and above it how their indices stand there. Values and
indices each start at a multiple of 64 bytes.

====== =============================================================================================================
layout indices
====== =============================================================================================================
0      4 bytes each, in front of the values; of older versions, read and no longer written
1      gaps between neighbours in blocks of 256: one byte a block for its width, to a multiple of 4, then the blocks
2      a bitmap of all elements, in words of 8 bytes
====== =============================================================================================================

Of 1 and 2 a frame has the one that is smaller.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from collcomp import devices
from collcomp.devices import on_device
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cpu, cuda, kernels_for
from collcomp.kernels.cpu import PACKED

__all__ = [
    "MOST_ELEMENTS",
    "Plan",
    "check_count",
    "counted",
    "finish",
    "largest",
    "max_nbytes",
    "plan",
    "read",
    "share",
    "values_in",
    "write",
]

#: Elements that a message may have, so that their indices and their number fit into 32 bits.
MOST_ELEMENTS = 2**32 - 1

_PLAIN, _PACKED, _BITMAP = range(3)


def check_count(count: int) -> None:
    """`ValueError` where a message is too long for indices of 32 bits."""
    if count > MOST_ELEMENTS:
        raise ValueError(f"count: {count} elements, a sparse frame holds at most {MOST_ELEMENTS}")


def share(ratio: float, count: int) -> int:
    """`ratio` of `count` elements, at least one if there is any."""
    return min(max(1, math.ceil(ratio * count)), count)


def max_nbytes(k: int, dtype: np.dtype) -> int:
    """Upper bound of the payload of `k` elements or fewer, whatever their indices are."""
    return align(k * dtype.itemsize) + align(4 * k + _widths_nbytes(k))


def values_in(payload: np.ndarray, k: int, dtype: np.dtype) -> np.ndarray:
    """Where the values of `k` elements are to be written before `finish`."""
    return payload[: k * dtype.itemsize].view(dtype)


def largest(x: np.ndarray, addend: np.ndarray | None, k: int, values: np.ndarray) -> np.ndarray:
    """Indices of the `k` elements of largest magnitude of ``x + addend``, which `x` becomes; `values` gets them."""
    if not on_device(x):
        return cpu.load("sparse").largest(x, addend, k, values)
    kernels, indices = cuda.load("sparse"), devices.empty(k, np.dtype(np.uint32), x)
    kernels.largest(x, addend, k, indices, values, devices.zeros(kernels.scratch_size(x.size), np.dtype(np.int64), x))
    return indices


def counted(beside: np.ndarray) -> int:
    """Wait for a number below 2**32 that a kernel has counted, on the device where `beside` lies."""
    if devices.is_capturing(beside):
        raise ValueError("capture: how long a sparse frame is depends on its values, which no graph waits for")
    return devices.read()[0] & 0xFFFFFFFF


class Plan(NamedTuple):
    """How indices are to be written."""

    extra: int
    nbytes: int
    widths: np.ndarray


def plan(indices: np.ndarray, itemsize: int, count: int) -> Plan:
    """Choose the smallest layout of ascending `indices` of `count` elements, whose values have `itemsize` bytes."""
    k = indices.size
    widths = devices.zeros(_widths_nbytes(k), np.dtype(np.uint8), indices)
    used = widths[: -(-k // PACKED)]
    if not on_device(indices):
        words = cpu.load("indices").measure(indices, used, np.empty(PACKED, np.uint32))
    elif k:
        cuda.load("indices").measure(indices, used, devices.counters())
        words = counted(indices)
    else:
        words = 0
    packed, bitmap = widths.size + 4 * words, _bitmap_nbytes(count)
    layout = _BITMAP if bitmap < packed else _PACKED
    return Plan(layout << 32 | k, align(k * itemsize) + min(packed, bitmap), widths)


def write(payload: np.ndarray, indices: np.ndarray, itemsize: int, chosen: Plan) -> tuple[int, int]:
    """Write `indices` behind their values; return (payload bytes, the header's `extra`)."""
    k, widths = indices.size, chosen.widths
    kernels = kernels_for(indices, "indices")
    start = align(k * itemsize)
    payload[k * itemsize : start] = 0
    section = payload[start : chosen.nbytes]
    if chosen.extra >> 32 == _BITMAP:
        kernels.to_bitmap(indices, section.view(np.uint64))
    else:
        section[: widths.size] = widths
        words, used = section[widths.size :].view(np.uint32), widths[: -(-k // PACKED)]
        if not on_device(indices):
            kernels.pack_gaps(indices, used, np.empty(PACKED, np.uint32), words)
        elif k:
            kernels.pack_gaps(indices, used, words)
    return chosen.nbytes, chosen.extra


def finish(payload: np.ndarray, indices: np.ndarray, itemsize: int, count: int) -> tuple[int, int]:
    """`write` in the smallest layout."""
    return write(payload, indices, itemsize, plan(indices, itemsize, count))


def read(frame: Frame, dtype: np.dtype, fewest: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices, all below ``frame.count``, and values of `dtype` of a frame of `fewest` to `most` elements.

    On a device nothing waits to see whether packed indices make sense: kernels skip those that do not.
    """
    layout, k = frame.extra >> 32, frame.extra & 0xFFFFFFFF
    if layout not in (_PLAIN, _PACKED, _BITMAP) or not fewest <= k <= most:
        raise FrameError(f"frame: layout {layout} with {k} elements, expected {fewest} to {most}")
    values_nbytes = k * dtype.itemsize
    if layout == _PLAIN:
        start = align(4 * k)
        frame.check_nbytes(start + values_nbytes)
        indices = frame.payload[: 4 * k].view(np.uint32)
        if not _are_ascending(indices, frame.count):
            raise FrameError(f"frame: the indices do not ascend from 0 to {frame.count - 1}")
        return indices, frame.payload[start:].view(dtype)
    start = align(values_nbytes)
    if layout == _BITMAP:
        frame.check_nbytes(start + _bitmap_nbytes(frame.count))
        indices = _from_bitmap(frame.payload[start:].view(np.uint64), k, frame.count)
    else:
        indices = _from_gaps(frame, start, k)
    return indices, frame.payload[:values_nbytes].view(dtype)


def _are_ascending(indices: np.ndarray, count: int) -> bool:
    if not on_device(indices):
        return cpu.load("indices").are_ascending(indices, count)
    if indices.size:
        cuda.load("indices").are_ascending(indices, count, devices.counters())
    return not counted(indices)


def _from_bitmap(bitmap: np.ndarray, k: int, count: int) -> np.ndarray:
    kernels = kernels_for(bitmap, "indices")
    if on_device(bitmap):
        indices = devices.empty(k, np.dtype(np.uint32), bitmap)
        if k:
            counts = devices.empty(kernels.counts_size(bitmap.size), np.dtype(np.int64), bitmap)
            kernels.ones(bitmap, counts)
            kernels.from_bitmap(bitmap, indices, counts)
        return indices
    found = kernels.ones(bitmap)
    if found != k or (count % 64 and int(bitmap[-1]) >> count % 64):
        raise FrameError(f"frame: a bitmap of {found} ones for {k} of {count} elements")
    indices = np.empty(k, np.uint32)
    kernels.from_bitmap(bitmap, indices)
    return indices


def _from_gaps(frame: Frame, start: int, k: int) -> np.ndarray:
    stop = start + _widths_nbytes(k)
    if frame.payload.size < stop or (frame.payload.size - stop) % 4:
        raise FrameError(f"frame: {frame.payload.size} payload bytes, {k} elements take at least {stop}")
    widths = frame.payload[start : start - (-k // PACKED)]
    kernels = kernels_for(widths, "indices")
    if on_device(widths):
        indices = devices.empty(k, np.dtype(np.uint32), widths)
        if k:
            totals = devices.empty(widths.size, np.dtype(np.int64), widths)
            kernels.unpack_gaps(widths, frame.payload[stop:].view(np.uint32), indices, totals)
        return indices
    words = kernels.packed_size(widths, k)
    if words < 0:
        raise FrameError("frame: gaps of more than 32 bits")
    frame.check_nbytes(stop + 4 * words)
    indices = np.empty(k, np.uint32)
    last = kernels.unpack_gaps(widths, frame.payload[stop:].view(np.uint32), indices)
    if last >= frame.count:
        raise FrameError(f"frame: index {last} of {frame.count} elements")
    return indices


def _bitmap_nbytes(count: int) -> int:
    return 8 * -(-count // 64)


def _widths_nbytes(k: int) -> int:
    """One byte a block, to a multiple of 4."""
    return 4 * -(-k // (4 * PACKED))
