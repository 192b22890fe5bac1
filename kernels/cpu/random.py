"""Random numbers that depend on a key and a position only."""

import numpy as np

from collcomp.kernels.cpu.jit import inlined

__all__ = ["random32"]


@inlined
def random32(key, index):
    """The uint32 at place `index` of random stream `key` (SplitMix64)."""
    z = np.uint64(key) + np.uint64(index) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint32(z >> np.uint64(32))
