"""The values that ranks send: known to every rank, so that any rank can check any result."""

from __future__ import annotations

import numpy as np

__all__ = ["ITEMSIZE", "values"]

ITEMSIZE = 4

_CHUNK = 1 << 16


def values(rank: int, start: int, stop: int) -> np.ndarray:
    """Elements `start` to `stop` of the message of `rank`.

    Returns
    -------
    ndarray of float32, shape (stop - start,)
        Normally distributed; any range can be had without what lies before it.
    """
    out = np.empty(stop - start, np.float32)
    for chunk in range(start // _CHUNK, -(-stop // _CHUNK)):
        normal = np.random.default_rng((rank, chunk)).standard_normal(_CHUNK, np.float32)
        a, b = max(start, chunk * _CHUNK), min(stop, (chunk + 1) * _CHUNK)
        out[a - start : b - start] = normal[a - chunk * _CHUNK : b - chunk * _CHUNK]
    return out
