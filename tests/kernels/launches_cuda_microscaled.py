"""Small floats on a GPU as a compiler sees them; `tests/codecs/test_device_microscaled.py` has their bits."""

import numpy as np
from device import to_device

from collcomp.codecs import as_codec
from collcomp.kernels import cuda


def launch_all(real):
    """Every kernel once, for the compiler: some for each format."""
    kernels, x = cuda.load("microscaled"), to_device(np.zeros(600, real))
    scales, codes, raw, how = _sections("fp8_e5m2:rounding=stochastic", x)
    kernels.encode_feedback(x, x, scales, codes, *how)
    kernels.encode_sum((scales,) * 2, (codes,) * 2, x, 1, 3, x, scales, codes, *how)
    kernels.decode(scales, codes, raw, how[0], x)
    scales, codes, raw, how = _sections("mxfp4", x)
    places = to_device(np.zeros(len(scales), np.int32))
    kernels.encode(x, scales, codes, *how)
    kernels.encode_keep(x, x, scales, codes, *how)
    kernels.decode_add(scales, codes, raw, how[0], x, places)
    kernels.locate(scales, places)
    kernels.copy_raw(x, scales, places, how[0], raw, True)


def _sections(spec, x):
    codec = as_codec(spec)
    payload = to_device(np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8))
    return *codec._sections(payload, x.size, x.dtype), (codec.block, codec._key(5), to_device(np.zeros(1, np.int32)))
