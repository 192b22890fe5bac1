"""What a lossless codec could make of float32 values: their entropy, from a sample."""

import numpy as np

from collcomp.kernels.cpu.bits import hash32
from collcomp.kernels.cpu.jit import kernel

__all__ = ["byte_entropies"]

_SAMPLED = 1 / 100
#: Elements that are sampled at one place: one cache line.
_RUN = 16
_MIN_SAMPLE = 1 << 16


def byte_entropies(x):
    """Entropy in bits of each byte of float32 `x` from 1% of the elements: exponents first, the sign last.

    Their sum is what coding every byte for itself can reach. Only neighbours that are alike, or layers of different
    scale, can be coded in less.
    """
    bits = x.view(np.uint32)
    counts = np.zeros((4, 256), np.int64)
    runs = max(int(x.size * _SAMPLED), min(x.size, _MIN_SAMPLE)) // _RUN
    _count(bits, runs, counts)
    shares = counts / max(1, counts[0].sum())
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.abs((shares * logs).sum(1))


@kernel
def _count(bits, runs, counts):
    """Count the bytes of runs at one random place of each of equally many parts of `bits`, rotated left by one bit."""
    if runs == 0:
        return
    part = bits.size // runs
    for r in range(runs):
        start = r * part + (np.int64(hash32(np.uint32(r), np.uint32(0))) * (part - _RUN + 1) >> 32)
        run = bits[start : start + _RUN]
        for i in range(_RUN):
            word = (np.int64(run[i]) << 1 | np.int64(run[i]) >> 31) & 0xFFFFFFFF
            counts[0, word >> 24] += 1
            counts[1, word >> 16 & 255] += 1
            counts[2, word >> 8 & 255] += 1
            counts[3, word & 255] += 1
