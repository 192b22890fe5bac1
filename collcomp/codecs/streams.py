"""Random streams: equal numbers give equal values, whoever draws them."""

import numpy as np

__all__ = ["hashes", "random_key"]


def random_key(seed: int, stream: int) -> int:
    """One key for both; below 2**63, so that kernels are compiled for one integer type only."""
    return (seed * 0xD1B54A32D192ED03 + stream * 0x8CB92BA72F3D8DD7) & 0x7FFFFFFFFFFFFFFF


def hashes(count: int, key: int = 0) -> np.ndarray:
    """One uint64 for each of `count` places of stream `key`, which have nothing to do with each other (SplitMix64)."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
