"""Small floats on a GPU as a compiler sees them; `tests/codecs/test_device_microscaled.py` has their bits."""

import numpy as np
from device import to_device

from collcomp.codecs import as_codec
from collcomp.kernels import cuda

STREAM = 5


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, x = cuda.load("microscaled"), to_device(np.zeros(600, real))
    for spec in ("fp8_e5m2:rounding=stochastic", "mxfp4"):
        codec = as_codec(spec)
        payload = to_device(np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8))
        scales, codes, raw = codec._sections(payload, x.size, x.dtype)
        places, counters = to_device(np.zeros(len(scales), np.int32)), to_device(np.zeros(1, np.int32))
        sections = (scales, codes, codec.block, codec._key(STREAM), counters)
        kernels.encode(x, *sections)
        kernels.encode_keep(x, x, *sections)
        kernels.encode_feedback(x, x, *sections)
        kernels.encode_sum((scales,) * 3, (codes,) * 3, x, 1, 3, x, *sections)
        kernels.decode(scales, codes, raw, codec.block, x)
        kernels.decode_add(scales, codes, raw, codec.block, x, places)
        kernels.locate(scales, places)
        kernels.copy_raw(x, scales, places, codec.block, raw, True)
