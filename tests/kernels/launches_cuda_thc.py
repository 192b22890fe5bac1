"""THC on a GPU as a compiler sees it; `tests/codecs/test_device_thc.py` has its bits."""

import numpy as np
from device import to_device

from collcomp.codecs import THC
from collcomp.kernels import cuda


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, codec = cuda.load("thc"), THC()

    def room(count, kind=real):
        return to_device(np.zeros(count, kind))

    x = room(2048)
    sections = (room(2, np.float32), room(256, np.uint32), room(0))
    rotation = (room(1024), room(0), room(4))
    lattice = (room(512, np.int32), room(4, np.uint32), room(2048, np.uint8), codec.granularity, codec._reach())
    kernels.encode(x, x, None, *sections, *rotation, *lattice, 4, 5, room(1, np.int32))
    kernels.decode(*sections, *rotation, *lattice, 4, True, x)
    kernels.decode_sums(room(2048, np.uint16), sections[0], 15.0, *rotation, codec._reach(), x)
