"""Estimated thresholds: the published figures of the fits, how many elements are sent, and what is remembered."""

import functools

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal

from collcomp.codecs import Threshold, TopK
from collcomp.codecs.fits import fitted_threshold, most_stages
from collcomp.frame import Frame

COUNT = 1 << 20
DATA = {
    "laplace": lambda rng: rng.laplace(size=COUNT),
    "normal": lambda rng: rng.standard_normal(COUNT),
    "student": lambda rng: rng.standard_t(3, COUNT),
    "gamma": lambda rng: rng.gamma(0.5, size=COUNT) * rng.choice([-1, 1], COUNT),
    "mixture": lambda rng: rng.standard_normal(COUNT) * np.exp(rng.standard_normal(COUNT)),
}
METHODS = ("sidco", "dgc", "held")
each_method = pytest.mark.parametrize("method", METHODS)


@functools.cache
def data(name, seed=0, dtype=np.float32):
    """A million values of a distribution."""
    return DATA[name](np.random.default_rng(seed)).astype(dtype)


def encode_next(codec, x, state, residual=None, stream=0):
    """The frame of one of several calls with the same key."""
    buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    return Frame.read(buffer[: codec.encode_feedback(x, residual, buffer, stream=stream, state=state)])


def number(frame):
    """Number of elements in a frame."""
    return frame.extra & 0xFFFFFFFF


def check_is_a_threshold(x, codec, frame):
    """What is in the frame is everything of at least the smallest magnitude in it, bit by bit."""
    indices, values = codec.selection(frame)
    assert values.tobytes() == x[indices].tobytes()
    if values.size:
        smallest = np.abs(values).min()
        assert smallest > 0
        if values.size < codec.most(x.size):
            np.testing.assert_array_equal(indices, np.flatnonzero(np.abs(x) >= smallest))


# ---------------------------------------------------------------------- fits


@pytest.mark.parametrize(
    ("name", "share", "published"),
    [
        ("laplace", 0.01, (1.00, 1.00, 1.00, 1.00, 1.00)),
        ("laplace", 0.001, (1.00, 1.00, 1.00, 1.00, 1.00)),
        ("normal", 0.01, (0.024, 0.638, 1.13, 1.29, 1.38)),
        ("normal", 0.001, (0.0, 0.088, 0.70, 1.08, 1.29)),
        ("student", 0.01, (1.47, 1.17, 0.67, 0.51, 0.43)),
        ("student", 0.001, (4.68, 3.55, 1.17, 0.64, 0.45)),
        ("gamma", 0.001, (8.6, 1.46, 1.07, 0.98, 0.94)),
    ],
)
def test_exponential_fits_of_one_to_five_stages(name, share, published):
    """Selected over aimed at, as a function of the number of stages."""
    x = np.abs(data(name, dtype=np.float64))
    for stages, expected in enumerate(published, start=1):
        achieved = np.count_nonzero(x >= fitted_threshold(x, share, stages, "exponential")) / (share * x.size)
        assert abs(achieved - expected) < 0.03 + 0.06 * expected


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("share", [0.01, 0.001])
def test_pareto_fits_heavy_tails_in_one_stage(name, share):
    x = np.abs(data(name, dtype=np.float64))
    for stages in (2, 3):
        achieved = np.count_nonzero(x >= fitted_threshold(x, share, stages, "pareto")) / (share * x.size)
        assert 0.75 < achieved < 1.25


def test_a_gamma_distribution_is_fitted_by_one():
    x = np.abs(data("gamma", dtype=np.float64))
    achieved = np.count_nonzero(x >= fitted_threshold(x, 0.001, 1, "gamma")) / (0.001 * x.size)
    assert 0.9 < achieved < 1.1


def test_fits_of_little_variety():
    for model in ("exponential", "pareto", "gamma"):
        for x in (np.ones(1000), np.array([1.0, 2.0]), np.r_[np.ones(999), 1e9]):
            for stages in (1, 2, 5):
                assert fitted_threshold(x, 0.01, stages, model) > 0


def test_number_of_stages_is_limited():
    assert [most_stages(share) for share in (0.01, 0.001, 0.5, 0.9)] == [7, 10, 1, 1]


# ---------------------------------------------------------------------- how many


@pytest.mark.parametrize("model", ["exponential", "pareto", "gamma"])
@pytest.mark.parametrize("ratio", [0.01, 0.001])
@pytest.mark.parametrize("name", DATA)
def test_sidco_afresh(name, ratio, model):
    """The sample says how many stages the first call needs."""
    codec = Threshold(ratio=ratio, model=model)
    x = data(name)
    frame = encode(codec, x)
    assert 0.7 < number(frame) / codec.aimed_at(COUNT) <= 1.3
    check_is_a_threshold(x, codec, frame)


@pytest.mark.parametrize("start", [1, 2, 7])
@pytest.mark.parametrize("ratio", [0.01, 0.001])
@pytest.mark.parametrize("name", ["laplace", "normal", "student"])
def test_sidco_adapts_in_either_direction(name, ratio, start):
    """From any number of stages, the number of elements comes to within 20%, for light tails and heavy ones."""
    codec = Threshold(ratio=ratio)
    most = most_stages(ratio)
    state = {
        "stages": np.int64(start),
        "achieved": np.full(most + 1, np.nan),
        "sum": np.float64(0),
        "calls": np.int64(0),
    }
    achieved = []
    for call in range(50):
        found = number(encode_next(codec, data(name, call % 5), state)) / codec.aimed_at(COUNT)
        achieved = [*achieved[-4:], found]
    assert 0.8 < np.mean(achieved) < 1.2


def test_sidco_keeps_what_comes_nearest():
    """Where no number of stages is good, it stays with the best and does not wander."""
    codec = Threshold(ratio=0.01)
    x = np.repeat(np.array([1, 2, 3, 50], np.float32), [40_000, 30_000, 25_000, 5_000])  # 5% are equal
    state, seen = {}, []
    for _ in range(60):
        encode_next(codec, x, state)
        seen.append(int(state["stages"]))
    assert len(set(seen[-20:])) == 1
    assert all(isinstance(value, (np.ndarray, np.generic)) for value in state.values())


@pytest.mark.parametrize("ratio", [0.01, 0.001, 0.3])
@pytest.mark.parametrize("name", DATA)
def test_dgc_is_within_its_bounds(name, ratio):
    codec = Threshold(ratio=ratio, method="dgc")
    x = data(name)
    frame = encode(codec, x)
    assert 0.7 <= number(frame) / codec.aimed_at(COUNT) <= 1.3
    check_is_a_threshold(x, codec, frame)


def test_dgc_corrects_a_sample_that_misleads():
    """All of the largest elements side by side, or none where the sample looks."""
    codec = Threshold(ratio=0.001, method="dgc")
    rng = np.random.default_rng(0)
    for width in (100, 1000, 10_000, 100_000):
        x = rng.standard_normal(COUNT).astype(np.float32)
        x[500_000 : 500_000 + width] *= 20
        frame = encode(codec, x)
        assert 0.7 <= number(frame) / codec.aimed_at(COUNT) <= 1.3
        check_is_a_threshold(x, codec, frame)


@pytest.mark.parametrize("dtype", WORKING, ids=str)
@pytest.mark.parametrize("count", [1, 100, 20_000])
@pytest.mark.parametrize("feedback", [False, True])
def test_held_for_one_call_is_topk(count, dtype, feedback):
    codec, exact = Threshold(ratio=0.02, method="held", every=1), TopK(ratio=0.02)
    state = {}
    residuals = [np.zeros(count, dtype), np.zeros(count, dtype)] if feedback else [None, None]
    for call in range(4):
        x = normal(count, dtype, seed=call)
        frame = encode_next(codec, x, state, residuals[0])
        expected = encode(exact, x) if not feedback else encode_next(exact, x, {}, residuals[1])
        assert decode(codec, frame, dtype).tobytes() == decode(exact, expected, dtype).tobytes()
        if feedback:
            assert residuals[0].tobytes() == residuals[1].tobytes()


def test_held_drifts_and_comes_back():
    codec = Threshold(ratio=0.01, method="held", every=4)
    x, state, numbers = data("normal"), {}, []
    for call in range(9):
        numbers.append(number(encode_next(codec, x * np.float32(0.97**call), state)) / codec.aimed_at(COUNT))
    assert numbers[0] == numbers[4] == numbers[8] == 1
    for drifting in (numbers[:4], numbers[4:8]):
        assert (np.diff(drifting) < -0.05).all()


@each_method
@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0])
def test_never_more_than_the_limit(method, ratio):
    """Whatever the data: the largest elements are sent then."""
    codec = Threshold(ratio=ratio, method=method)
    rng = np.random.default_rng(0)
    state = {}
    for x in (
        np.ones(50_000, np.float32),
        rng.standard_normal(50_000).astype(np.float32),
        1e6 * rng.standard_normal(50_000).astype(np.float32),
        np.where(rng.random(50_000) < 0.02, 1, 1e-3).astype(np.float32),
        np.full(50_000, np.nan, np.float32),
    ):
        for frame in (encode(codec, x), encode_next(codec, x, state)):
            assert number(frame) <= codec.most(x.size) <= max(1.3 * ratio * x.size, 1)
            if number(frame) == codec.most(x.size):
                left_out = np.delete(x, codec.selection(frame)[0])
                assert not (np.abs(left_out) > np.abs(codec.selection(frame)[1]).min()).any()


# ---------------------------------------------------------------------- special values


@each_method
@pytest.mark.parametrize("dtype", WORKING, ids=str)
@pytest.mark.parametrize("count", [1000, 50_000])
def test_nan_and_infinity_are_sent(method, count, dtype):
    codec = Threshold(ratio=0.05, method=method)
    x = normal(count, dtype)
    x[[3, 500]] = np.nan
    x[[4, 600]] = np.inf, -np.inf
    decoded = decode(codec, encode(codec, x), dtype)
    assert np.isnan(decoded[[3, 500]]).all()
    np.testing.assert_array_equal(decoded[[4, 600]], x[[4, 600]])
    assert 0.03 < np.count_nonzero(decoded) / count < 0.07


@pytest.mark.parametrize("method", ["sidco", "dgc"])
def test_zeros_are_not_sent(method):
    codec = Threshold(ratio=0.05, method=method)
    assert number(encode(codec, np.zeros(50_000, np.float32))) == 0
    x = np.zeros(50_000, np.float32)
    x[::1000] = -1e-40
    np.testing.assert_array_equal(decode(codec, encode(codec, x), np.float32), x)
    x[::10] = np.random.default_rng(0).standard_normal(5000)
    frame = encode(codec, x)
    assert 0.7 <= number(frame) / codec.aimed_at(x.size) <= 1.3
    check_is_a_threshold(x, codec, frame)


@each_method
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 3e38])
def test_any_scale(method, scale):
    codec = Threshold(ratio=0.05, method=method)
    with np.errstate(over="ignore"):
        x = (np.random.default_rng(0).uniform(-1, 1, 20_000) * scale).astype(np.float32)
    assert number(encode(codec, x)) <= codec.most(x.size)
    assert number(encode(codec, x)) > 0


@each_method
def test_what_is_remembered_survives_a_checkpoint(method):
    """State is arrays and scalars: after a copy, frames are the same."""
    codec = Threshold(ratio=0.01, method=method, every=3 if method == "held" else 1000)
    state = {}
    for call in range(7):
        copy = {name: np.array(value) for name, value in state.items()}
        x = normal(20_000, seed=call)
        assert encode_next(codec, x, state).payload.tobytes() == encode_next(codec, x, copy).payload.tobytes()


def test_who_needs_a_key():
    assert Threshold().needs_key
    assert Threshold(method="held").needs_key
    assert not Threshold(method="dgc").needs_key
    assert Threshold(method="dgc", feedback=True).needs_key


@pytest.mark.parametrize(
    ("error", "parameters"),
    [
        (ValueError, {"ratio": 0.0}),
        (TypeError, {"ratio": None}),
        (ValueError, {"method": "topk"}),
        (ValueError, {"model": "normal"}),
        (ValueError, {"every": 0}),
        (ValueError, {"every": 10}),
        (ValueError, {"every": 10, "method": "dgc"}),
        (ValueError, {"model": "gamma", "method": "held"}),
        (TypeError, {"feedback": 1}),
    ],
)
def test_parameters_are_checked(error, parameters):
    name, value = next(iter(parameters.items()))
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        Threshold(**parameters)


@pytest.mark.parametrize("method", ["held", "sidco"])
def test_another_ratio_starts_anew(method):
    """A schedule that changes the share under one key is followed at once."""
    x, state = normal(20_000), {}
    sizes = []
    for ratio in (0.001, 0.1):
        codec = Threshold(ratio=ratio, method=method)
        buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
        frame = Frame.read(buffer[: codec.encode_feedback(x, None, buffer, state=state)])
        sizes.append(codec.selection(frame)[0].size)
    assert sizes[1] > 50 * sizes[0]
