"""Error-bounded codes on a GPU as a compiler sees them; `tests/codecs/test_device_bounded.py` has their bits."""

import numpy as np
from device import to_device

from collcomp.kernels import cuda


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, x = cuda.load("bounded"), to_device(np.zeros(512, real))
    found = to_device(np.zeros(2, np.dtype(f"i{x.itemsize}")))
    bound, grid = to_device(np.ones(1)), to_device(np.zeros((3, 2), real))
    kernels.extremes(x, found)
    kernels.relative(found, 1e-3, real, bound)
    kernels.fit(bound, (1.0, 1.5), (2.0**13, 2.0**20), grid)
    codes, counters = to_device(np.zeros(2, np.uint8)), to_device(np.zeros(2, np.int32))
    values, room = to_device(np.zeros(512, real)), to_device(np.zeros(kernels.room_of(2), np.int64))
    words = values.view(np.uint32)
    section = (grid, codes, words, values, room)
    kernels.encode_keep(x, x, *section, counters)
    kernels.encode_feedback(x, x, *section, counters)
    kernels.decode(x, *section)
    kernels.decode_add(x, *section)
    if real is np.float32:
        kernels.encode(x, *section, counters)
        total = to_device(np.zeros(512, np.int32))
        kernels.quantise(x, grid, total, counters)
        kernels.add_integers(total, codes, words, bound, 1.0, room, counters)
        kernels.encode_integers(total, x, grid, codes, words, room, counters)
