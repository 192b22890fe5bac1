"""Integers on one scale on a GPU as a compiler sees them; `tests/codecs/test_device_shared_scale.py` has their bits."""

import numpy as np
from device import to_device

from collcomp.kernels import cuda


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, x = cuda.load("shared_scale"), to_device(np.zeros(300, real))
    bits = to_device(np.zeros(1, np.dtype(f"i{x.itemsize}")))
    wide, narrow, counters = (to_device(np.zeros(1, kind)) for kind in (np.float64, real, np.int32))
    kernels.largest(x, bits)
    kernels.add_largest(x, x, bits)
    kernels.fit(wide, 127.0, (2.0**-95, 2.0**127), wide, narrow, narrow, counters)
    bytes_, words = (to_device(np.zeros(300, integer)) for integer in (np.int8, np.int32))
    kernels.encode(x, narrow, bytes_)
    kernels.encode_feedback(x, narrow, narrow, words)
    kernels.decode(bytes_, narrow, x)
    kernels.decode_add(words, narrow, x)
