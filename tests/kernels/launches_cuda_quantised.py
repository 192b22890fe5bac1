"""Block quantisation on a GPU as a compiler sees it; `tests/codecs/test_device_blocks.py` has its bits."""

import numpy as np
from device import to_device

from collcomp.codecs import as_codec
from collcomp.kernels import cuda

STREAM = 5


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, x = cuda.load("quantised"), to_device(np.zeros(600, real))
    for spec in ("int4:rounding=stochastic,asymmetric", "sign"):
        codec = as_codec(spec)
        payload = to_device(np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8))
        scales, codes, raw = codec._sections(payload, x.size, x.dtype)
        places, counters = to_device(np.zeros(len(scales), np.int32)), to_device(np.zeros(1, np.int32))
        how = (codec.block, codec._planes)
        sections = (scales, codes, *how, codec._key(STREAM), counters)
        kernels.encode(x, *sections)
        kernels.encode_keep(x, x, *sections)
        kernels.encode_feedback(x, x, *sections)
        kernels.encode_sum((scales,) * 3, (codes,) * 3, x, 1, 3, x, *sections)
        kernels.decode(scales, codes, raw, *how, x)
        kernels.decode_add(scales, codes, raw, *how, x, places)
        kernels.locate(scales, places)
        kernels.copy_raw(x, scales, places, *how, raw, True)
