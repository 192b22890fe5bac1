"""Casts on a GPU as a compiler sees them; `tests/codecs/test_device_casts.py` has their bits."""

import numpy as np
from device import to_device

from collcomp.kernels import cuda


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, x = cuda.load("casts"), to_device(np.zeros(300, real))
    float16, bfloat16 = (to_device(np.zeros(300, kind)) for kind in (np.uint16, np.int16))
    kernels.encode(x, float16, None)
    kernels.encode(x, bfloat16, 5)
    kernels.encode_keep(x, x, bfloat16, None)
    kernels.encode_feedback(x, x, float16, 5)
    kernels.decode(float16, x)
    kernels.decode_add(bfloat16, x)
