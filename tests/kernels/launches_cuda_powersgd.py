"""Products with thin factors on a GPU as a compiler sees them; `tests/codecs/test_device_powersgd.py` has the bits."""

import numpy as np
from device import to_device

from collcomp.kernels import cuda


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, x = cuda.load("powersgd"), to_device(np.zeros(300, real))
    p, q = to_device(np.zeros((15, 5), real)), to_device(np.zeros((5, 20), real))
    kernels.project(x, None, q, p)
    kernels.project(x, x, q, p)
    kernels.project_back(x, p, q)
    kernels.multiply(p, q, x)
    kernels.multiply_add(p, q, x)
