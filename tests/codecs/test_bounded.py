"""The bound holds for every finite float; what has no grid travels as it is; smooth data become small."""

import dataclasses
import math

import numpy as np
import pytest
from checks import WORKING, check_decode_add, check_encode_keep, check_feedback, decode, encode, normal, same_bits
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from collcomp.codecs import Bounded
from collcomp.errors import FrameError
from collcomp.frame import HEADER_NBYTES, Frame
from collcomp.kernels.cpu import packing

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def smooth(count, dtype=np.float32):
    t = np.linspace(0, 400 * np.pi * count / (1 << 24), count)
    noise = 1e-5 * np.random.default_rng(0).standard_normal(count)
    return (np.sin(t) + 0.3 * np.sin(7.3 * t + 1) + 0.05 * np.cos(31 * t) + noise).astype(dtype)


def bound_of(codec, x):
    """What `codec` promises of `x`."""
    if codec.abs is not None:
        return codec.abs
    finite = x[np.isfinite(x)].tolist()
    return codec.rel * (max(finite) - min(finite)) if finite else 0.0


def assert_bounded(x, decoded, bound):
    finite = np.isfinite(x)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(decoded.astype(float) - x.astype(float))[finite]
    assert (error <= bound).all(), f"{error.max():r} > {bound:r}"
    assert same_bits(decoded[~finite], x[~finite])


@st.composite
def hostile_values(draw):
    """Floats of all magnitudes: random bits, subnormals, clusters around any value, ties between grid points."""
    dtype = draw(st.sampled_from(WORKING))
    count = draw(st.integers(1, 700))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    info = np.finfo(dtype)
    bound = 10.0 ** draw(st.floats(-300, 300))
    kind = draw(st.sampled_from(["bits", "tiny", "huge", "near", "ties", "walk", "mixed"]))
    with np.errstate(all="ignore"):
        if kind == "bits":
            x = rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8).view(dtype)
        elif kind == "tiny":
            x = rng.integers(0, 1000, count).astype(dtype) * info.smallest_subnormal
        elif kind == "huge":
            x = rng.uniform(-1, 1, count).astype(dtype) * info.max
        elif kind == "walk":
            x = (np.cumsum(rng.standard_normal(count)) * bound * 2.0 ** draw(st.integers(-3, 25))).astype(dtype)
        elif kind == "mixed":
            x = (rng.standard_normal(count) * bound * 2.0 ** rng.integers(-10, 40, count)).astype(dtype)
        else:
            centre = bound * 2.0 ** draw(st.floats(0, 34))
            steps = rng.integers(-3, 4, count) * bound if kind == "ties" else rng.uniform(-50, 50, count) * bound
            x = ((centre + steps) * rng.choice([-1, 1], count)).astype(dtype)
    for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, info.max, -info.tiny]))):
        x[rng.integers(0, count)] = value
    return x, bound


@many
@given(hostile_values())
@example((np.array([1.0, 2.0**20 * (1 - 2.0**-24)], np.float32), 0.75))
@example((np.full(3, 3e38, np.float32), 1e300))
@example((np.full(3, 1.7e308), 1e308))
def test_absolute_bound(given):
    x, bound = given
    codec = Bounded(abs=bound)
    assert_bounded(x, decode(codec, encode(codec, x), x.dtype), bound)


@many
@given(hostile_values(), st.floats(-12, 2))
def test_relative_bound(given, exponent):
    x, _ = given
    codec = Bounded(rel=10.0**exponent)
    assert_bounded(x, decode(codec, encode(codec, x), x.dtype), bound_of(codec, x))


@pytest.mark.parametrize("bits", range(30))
@each_dtype
def test_bound_at_every_distance_from_zero(bits, dtype):
    """Where the rounding of the arithmetic is largest: at ties between grid points, up to the limits of both grids."""
    rng = np.random.default_rng(bits)
    for bound in rng.uniform(0.1, 0.2, 20):
        codec = Bounded(abs=bound)
        for step in codec._grid(bound, dtype)[0].tolist():
            number = np.rint(2.0**bits * rng.uniform(0.5, 1, 2000)) + 0.5
            x = (number * step).astype(dtype)
            x = np.concatenate([np.nextafter(x, dtype.type(0)), x, np.nextafter(x, dtype.type(np.inf))])
            assert_bounded(x, decode(codec, encode(codec, x), dtype), bound)


@each_dtype
@pytest.mark.parametrize("codec", [Bounded(abs=1e-3), Bounded(rel=1e-3), Bounded(rel=1e-6)], ids=lambda c: c.spec)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "largest"])
@pytest.mark.parametrize("count", [3, 256, 511, 1000])
def test_what_has_no_grid_travels_as_it_is(codec, dtype, value, count):
    x = normal(count, dtype)
    x[-1], x[-2] = np.finfo(dtype).max if value == "largest" else value, -0.0
    frame = encode(codec, x)
    decoded = decode(codec, frame, dtype)
    start = (count - 1) // 256 * 256
    assert frame.extra >= 1
    assert same_bits(decoded[start:], x[start:])
    check_decode_add(codec, x)
    check_encode_keep(codec, x)
    residual = np.zeros(count, dtype)
    codec.encode_feedback(x, residual, np.empty(codec.max_encoded_nbytes(count, dtype), np.uint8))
    assert not residual[start:].any()


@each_dtype
def test_all_blocks_raw(dtype):
    x = np.full(777, np.nan, dtype)
    frame = encode(Bounded(), x)
    assert frame.extra == 4
    assert frame.nbytes == Bounded().max_encoded_nbytes(777, dtype)
    assert same_bits(decode(Bounded(), frame, dtype), x)


@each_dtype
@pytest.mark.parametrize("codec", [Bounded(abs=1e-300), Bounded(abs=1e300), Bounded()], ids=lambda c: c.spec)
def test_zeros_take_a_byte_a_block(codec, dtype):
    x = np.zeros(256 * 640, dtype)
    frame = encode(codec, x)
    assert frame.payload.size <= 640 + 64
    assert not decode(codec, frame, dtype).any()


@each_dtype
def test_a_bound_too_small_for_the_dtype_loses_nothing(dtype):
    x = normal(1000, dtype)
    codec = Bounded(abs=np.finfo(dtype).tiny / 4)
    assert same_bits(decode(codec, encode(codec, x), dtype), x)


def test_blocks_of_both_grids_and_raw_ones():
    """Each block takes the finest coding that keeps the bound."""
    x = np.random.default_rng(0).uniform(-1, 1, (5, 256)) * [[0.01], [100], [1e9], [100], [0.01]]
    x = x.astype(np.float32).ravel()
    codec = Bounded(abs=1e-3)
    frame = encode(codec, x)
    codes = frame.payload[8:13]
    assert (codes >> 7).tolist() == [0, 1, 0, 1, 0]
    assert (codes == 63).tolist() == [False, False, True, False, False]
    assert_bounded(x, decode(codec, frame, np.float32), 1e-3)


def test_differences_only_where_they_are_narrower():
    """They are tried in every fourth block, and in every one after a block where they were narrower."""
    ramp, noise = np.arange(256), np.random.default_rng(0).uniform(-100, 100, 256)
    blocks = [ramp, ramp + 256, noise, ramp, ramp + 256, ramp + 512, noise, noise, noise, ramp]
    frame = encode(Bounded(abs=0.4), np.concatenate(blocks).astype(np.float32))
    assert (frame.payload[8:18] >> 6 & 1).tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(("rel", "ratio"), [(1e-3, 21), (1e-4, 19.8)])
def test_smooth_data_become_small(rel, ratio):
    x = smooth(1 << 18)
    assert x.nbytes / encode(Bounded(abs=rel * 2.7), x).nbytes >= ratio


def test_equal_bounds_give_equal_values_whatever_the_segments():
    """With an absolute bound, blocks can be cut anywhere at multiples of 256 elements."""
    codec, x = Bounded(abs=1e-3), smooth(5000)
    parts = [decode(codec, encode(codec, x[i : i + 512]), np.float32) for i in range(0, 5000, 512)]
    assert same_bits(np.concatenate(parts), decode(codec, encode(codec, x), np.float32))


@each_dtype
@pytest.mark.parametrize("codec", [Bounded(abs=0.01), Bounded(rel=0.01)], ids=lambda c: c.spec)
def test_feedback(codec, dtype):
    check_feedback(codec, smooth(1000, dtype))


@each_dtype
@pytest.mark.parametrize("bound", [math.nan, math.inf, -1.0])
def test_bounds_that_are_none_are_refused(dtype, bound):
    codec = Bounded()
    frame = encode(codec, normal(300, dtype))
    frame.payload[:8].view(float)[0] = bound
    with pytest.raises(FrameError, match="bound"):
        codec.decode(frame, np.zeros(300, dtype))


@pytest.mark.parametrize("code", [33, 62, 62 + 64, 63 + 64, 63 + 128])
def test_codes_without_a_meaning_are_refused(code):
    codec = Bounded()
    frame = encode(codec, normal(300))
    frame.payload[9] = code
    with pytest.raises(FrameError, match="width"):
        codec.decode(frame, np.zeros(300, np.float32))


def test_sizes_that_do_not_fit_are_refused():
    codec = Bounded()
    frame = encode(codec, normal(3000))
    for nbytes in (0, 7, 8, 20, 64, frame.payload.size - 1, frame.payload.size - 32):
        with pytest.raises(FrameError, match="payload"):
            codec.decode(dataclasses.replace(frame, payload=frame.payload[:nbytes]), np.zeros(3000, np.float32))


def test_blocks_are_those_of_the_kernels():
    assert Bounded.block == packing.BLOCK


def test_rel_is_the_default():
    assert Bounded() == Bounded(rel=1e-3)
    assert Bounded(abs=1) == Bounded(abs=1.0)
    assert Bounded(abs=1).digest == Bounded(abs=1.0).digest


@pytest.mark.parametrize("name", ["abs", "rel"])
@pytest.mark.parametrize(
    ("error", "value"),
    [(ValueError, 0), (ValueError, -1e-3), (ValueError, math.inf), (ValueError, math.nan), (TypeError, "a"),
     (TypeError, True)],
)  # fmt: skip
def test_bounds_are_checked(name, error, value):
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        Bounded(**{name: value})


def test_only_one_bound():
    with pytest.raises(ValueError, match=r"rel: 0.1 given beside abs=0.2"):
        Bounded(abs=0.2, rel=0.1)


def test_frames_are_as_long_as_told():
    codec = Bounded(abs=1e-3)
    x = normal(1 << 14)
    buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    nbytes = codec.encode(x, buffer)
    assert Frame.read(buffer[:nbytes]).payload.size == nbytes - HEADER_NBYTES
