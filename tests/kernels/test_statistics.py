"""Sampled entropies against those of known distributions."""

import math

import numpy as np
import pytest

from collcomp.kernels.cpu.statistics import byte_entropies


def gaussian_entropies():
    """Bits of the exponent of a normal value, and of the whole float32."""
    exponents = range(-60, 6)
    shares = [math.erf(2.0 ** (k + 1) / math.sqrt(2)) - math.erf(2.0**k / math.sqrt(2)) for k in exponents]
    exponent = -sum(p * math.log2(p) for p in shares if p)
    places = sum(p * (k - 23) for p, k in zip(shares, exponents, strict=True))
    return exponent, math.log2(2 * math.pi * math.e) / 2 - places


@pytest.mark.parametrize("count", [1 << 16, 1 << 24])
@pytest.mark.parametrize("scale", [1, 1e-6])
def test_gaussian(count, scale):
    x = np.random.default_rng(0).standard_normal(count, dtype=np.float32) * np.float32(scale)
    found = byte_entropies(x)
    exponent, whole = gaussian_entropies()
    if scale == 1:
        assert found[0] == pytest.approx(exponent, abs=0.03)
    # Each byte for itself: what exponent and mantissa tell about each other, 0.05 bits, is not seen.
    assert whole - 0.03 <= found.sum() <= whole + 0.1


def test_bytes_are_counted_apart():
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 16, 1 << 17).astype(np.uint32) << 19).view(np.float32)  # four upper bits of the mantissa
    np.testing.assert_allclose(byte_entropies(x), [0, 4, 0, 0], atol=0.01)
    x = (rng.integers(0, 2, 1 << 17).astype(np.uint32) << 31).view(np.float32)
    np.testing.assert_allclose(byte_entropies(x), [0, 0, 0, 1], atol=0.01)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
def test_few_values(count):
    np.testing.assert_array_equal(byte_entropies(np.ones(count, np.float32)), 0)
