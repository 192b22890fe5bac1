"""Rotations on a device: the bits of the CPU's kernels."""

import numpy as np
import pytest
from device import to_device, to_host

from collcomp.codecs.rotated import diagonal
from collcomp.kernels import cpu, cuda
from collcomp.kernels.cuda import butterflies

each_real = pytest.mark.parametrize("real", [np.float32, np.float64])


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, plain = cuda.load("rotation"), to_device(np.zeros(16, np.uint32))
    sizes = (1024, 2 * butterflies.TILE)
    (x, factors), (large, others) = ((to_device(diagonal(5, size, np.dtype(real))),) * 2 for size in sizes)
    kernels.rotate(x, x, factors, x, plain, 0)
    kernels.unrotate(x, factors, plain, 0)
    kernels.unrotate_add(x, factors, plain, 0, x)
    kernels.unrotate_subtract(large, others, plain, 0, large)


def message(count, real, values=()):
    rng = np.random.default_rng(count)
    x = rng.standard_normal(count).astype(real)
    x[::7] = -0.0
    for place, value in values:
        x[place] = value
    return x


def same(device, host):
    found = to_host(device)
    return np.array_equal(found, host, equal_nan=True) and np.array_equal(np.signbit(found), np.signbit(host))


@each_real
@pytest.mark.parametrize(
    ("size", "count", "values"),
    [
        (256, 700, [(300, np.nan)]),
        (512, 2000, [(1999, 2.0**90)]),
        (1024, 1024, []),
        (2 * butterflies.TILE, 4 * butterflies.TILE + 300, [(4 * butterflies.TILE + 5, -np.inf)]),
    ],
)
def test_same_bits_as_on_the_host(size, count, values, real):
    host, device = cpu.load("rotation"), cuda.load("rotation")
    x, factors = message(count, real, values), diagonal(5, size, np.dtype(real))
    other = message(count, real)[::-1].copy()
    blocks = -(-count // size)
    y, bits = np.empty(blocks * size, real), np.empty(-(-blocks // 8), np.uint8)
    # The bits begin in the second byte, and reach into the next word.
    first = 28
    words = to_device(np.zeros(2, np.uint32))

    def plain():
        return (int.from_bytes(to_host(words).tobytes(), "little") >> first).to_bytes(len(bits) + 3, "little")

    for residual in (None, other):
        kept = None if residual is None else residual.copy()
        device_kept = None if residual is None else to_device(residual)
        words.fill(0)
        rotated = to_device(np.full(y.size, 7, real))
        host.rotate(x, kept, factors, y, bits)
        device.rotate(to_device(x), device_kept, to_device(factors), rotated, words, first)
        assert same(rotated, y)
        assert plain().rstrip(b"\0") == bits.tobytes().rstrip(b"\0")
        assert residual is None or same(device_kept, kept)

    back = y.copy()
    host.unrotate(back, factors, bits)
    device.unrotate(made := to_device(y), to_device(factors), words, first)
    assert same(made, back)
    for name in ("unrotate_add", "unrotate_subtract"):
        total, made = other.copy(), to_device(other)
        getattr(host, name)(y.copy(), factors, bits, total)
        getattr(device, name)(to_device(y), to_device(factors), words, first, made)
        assert same(made, total)
