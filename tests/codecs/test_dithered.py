"""Dithering: unbiased, within the variance that the papers promise, and defined for values that fit no scale."""

import numpy as np
import pytest
from checks import WORKING, check_raw_last_block, decode, encode, normal, same_bits

from collcomp.codecs import QSGD, TernGrad, as_codec
from collcomp.frame import HEADER_NBYTES

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
SPECS = (
    "qsgd",
    "qsgd:levels=1",
    "qsgd:levels=127,norm=l2",
    "qsgd:levels=3,norm=l2,block=256",
    "qsgd:levels=3,spacing=natural",
    "qsgd:levels=5,norm=l2,spacing=natural,block=1024",
    "qsgd:levels=127,spacing=natural",
    "terngrad",
)
each_spec = pytest.mark.parametrize("spec", SPECS)
ROUNDS = 400


def samples(codec, x, rounds=ROUNDS):
    """What `x` decodes to in as many random streams."""
    return np.array([decode(codec, encode(codec, x, stream), x.dtype) for stream in range(rounds)]).astype(float)


def levels_of(codec, norms):
    """The magnitudes that values of blocks with these norms can become, ascending; the last axis counts them."""
    if codec.spacing == "linear":
        shares = np.arange(codec.levels + 1) / codec.levels
    else:
        shares = np.concatenate([[0], 2.0 ** np.arange(1 - codec.levels, 1)])
    return norms[..., None] * shares


def norms_of(codec, x):
    """The norm of the block of each element, in float64."""
    padded = np.zeros(-(-x.size // codec.block) * codec.block)
    padded[: x.size] = x
    order = {"max": np.inf, "l2": 2}[codec.norm]
    return np.linalg.norm(padded.reshape(-1, codec.block), order, axis=1).repeat(codec.block)[: x.size]


def neighbours(codec, x):
    """The levels below and above the magnitude of each element."""
    levels = levels_of(codec, norms_of(codec, x))
    below = (levels <= np.abs(x)[:, None] * (1 + 1e-12)).sum(1) - 1
    rows = np.arange(x.size)
    return levels[rows, below], levels[rows, np.minimum(below + 1, codec.levels)]


@each_spec
@each_dtype
def test_values_become_one_of_the_levels_around_them(spec, dtype):
    codec = as_codec(spec)
    x = normal(2500, dtype)
    low, high = neighbours(codec, x)
    tolerance = 2.0**-13 * np.maximum(high - low, np.abs(x)) + 2.0**-20 * high
    for stream in range(5):
        decoded = decode(codec, encode(codec, x, stream), dtype).astype(float)
        moved = np.abs(
            np.abs(decoded) - np.where(np.abs(np.abs(decoded) - low) < np.abs(np.abs(decoded) - high), low, high)
        )
        assert (moved <= tolerance).all()
        assert (np.sign(decoded) * np.sign(x) >= 0).all()


@each_spec
@each_dtype
def test_the_mean_is_the_value(spec, dtype):
    """Of each element, within 5 standard deviations of the mean of independent samples, and of all together."""
    codec = as_codec(spec)
    x = normal(1100, dtype)
    low, high = neighbours(codec, x)
    deviation = np.sqrt(np.maximum((np.abs(x) - low) * (high - np.abs(x)), 0) / ROUNDS)
    error = samples(codec, x).mean(0) - x
    # What is rarely sent is not normally distributed: one sample more or less is allowed for.
    assert (np.abs(error) <= 5 * deviation + (high - low) * (6 / ROUNDS) + 2.0**-20 * high).all()
    inside = high > low
    toward = (error * np.sign(x))[inside] / (high - low)[inside]
    spread = np.sqrt(((deviation[inside] / (high - low)[inside]) ** 2).sum()) / x.size
    assert abs(toward.mean()) <= 4 * spread + 2.0**-15


@pytest.mark.parametrize("levels", [1, 3, 15, 127])
@pytest.mark.parametrize("block", [256, 512, 2048])
def test_variance_is_within_the_bound_of_qsgd(levels, block):
    """E||Q(x) - x||^2 <= min(n / s^2, sqrt(n) / s) ||x||^2 for each block; Alistarh et al., lemma 3.1."""
    codec = QSGD(levels=levels, norm="l2", block=block)
    x = np.random.default_rng(0).standard_t(3, 4 * block).astype(np.float32)
    errors = ((samples(codec, x, 60) - x) ** 2).reshape(60, 4, block).sum(2).mean(0)
    lengths = (x.astype(float) ** 2).reshape(4, block).sum(1)
    assert (errors <= min(block / levels**2, np.sqrt(block) / levels) * lengths * 1.1).all()


@pytest.mark.parametrize(
    "spec", ["terngrad", "qsgd:levels=1,norm=max", "qsgd:levels=15", "qsgd:levels=3,spacing=natural"]
)
def test_variance_is_that_of_two_neighbours(spec):
    """E(Q(x) - x)^2 = (x - low) (high - x); for TernGrad |x| (m - |x|)."""
    codec = as_codec(spec)
    x = normal(4096)
    low, high = neighbours(codec, x)
    expected = ((np.abs(x) - low) * (high - np.abs(x))).reshape(-1, codec.block).sum(1)
    errors = ((samples(codec, x, 100) - x) ** 2).mean(0).reshape(-1, codec.block).sum(1)
    np.testing.assert_allclose(errors, expected, rtol=0.1)


def test_natural_levels_add_at_most_an_eighth_above_the_smallest():
    """E(Q(x) - x)^2 <= x^2 / 8 between powers of two; Horvath et al., theorem 1."""
    codec = QSGD(levels=30, spacing="natural")
    x = normal(512)
    errors = ((samples(codec, x) - x) ** 2).mean(0)
    assert errors.sum() <= (x.astype(float) ** 2).sum() / 8
    assert (errors <= x.astype(float) ** 2 / 8 * 1.3).all()


@each_dtype
def test_clipping(dtype):
    """The scale is 2.5 root mean squares, of the elements that are there; smaller ones stay unbiased."""
    codec = TernGrad(clip=2.5)
    x = normal(512 + 100, dtype)
    x[7] = x[-1] = 50 * np.abs(x).max()
    for block in (x[:512], x[512:]):
        limit = 2.5 * np.sqrt(np.mean(block.astype(float) ** 2))
        decoded = samples(codec, block, 300)
        assert np.allclose(np.unique(np.abs(decoded)), [0, limit], rtol=1e-6)
        clipped = np.clip(block, -limit, limit)
        np.testing.assert_allclose(decoded.mean(0), clipped, atol=5 * limit / 2 / np.sqrt(300))
        large = np.abs(block) > limit
        assert large.any()
        assert (decoded[:, large] == np.sign(block[large]) * np.abs(decoded).max()).all()


def test_clipping_leaves_what_is_not_large():
    x = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    for stream in range(3):
        frames = [encode(TernGrad(clip=clip), x, stream).payload for clip in (0, 2.5)]
        assert same_bits(*frames)


@each_spec
@each_dtype
@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 2.0**127, -3e38, 2.0**-120, 1e-40], ids=lambda value: f"{value:.3g}"
)
@pytest.mark.parametrize("count", [1024, 1300, 2047])
def test_what_fits_no_scale_travels_as_it_is(spec, dtype, value, count):
    check_raw_last_block(as_codec(spec), value, count, dtype)


@each_dtype
@pytest.mark.parametrize("spec", ["qsgd", "qsgd:norm=l2", "qsgd:spacing=natural", "terngrad"])
@pytest.mark.parametrize("exponent", [-119, -100, 0, 100, 126])
def test_every_scale_keeps_the_largest(spec, dtype, exponent):
    """Rounding never leaves the levels, whatever the mantissa of the largest element."""
    codec = as_codec(spec)
    x = np.zeros((300, codec.block))
    x[:, 3] = (1 + np.random.default_rng(0).random(300)) * 2.0**exponent
    x[:, 5] = -x[:, 3]
    x = (x / 2 if exponent == 126 else x).astype(dtype)
    decoded = decode(codec, encode(codec, x.ravel()), dtype).reshape(x.shape).astype(float)
    largest = levels_of(codec, norms_of(codec, x.ravel()))[:: codec.block, -1]
    assert (np.abs(decoded) <= largest[:, None] * (1 + 2.0**-22)).all()
    assert (decoded[:, 3] >= 0).all()
    assert (decoded[:, 5] <= 0).all()
    assert not np.delete(decoded, [3, 5], axis=1).any()


@each_dtype
def test_all_blocks_raw(dtype):
    x = np.full(1777, np.nan, dtype)
    frame = encode(QSGD(), x)
    assert frame.extra == 4
    assert frame.nbytes == QSGD().max_encoded_nbytes(1777, np.dtype(dtype))
    assert same_bits(decode(QSGD(), frame, dtype), x)


@pytest.mark.parametrize("spec", ["qsgd", "qsgd:spacing=natural", "terngrad"])
def test_streams_and_seeds_are_independent(spec):
    x = np.full(512 * 40, 0.75, np.float32)
    x[::512] = as_codec(spec).levels
    if "natural" in spec:
        x[::512] = 1

    def roundings(seed, stream):
        codec = as_codec(spec + (",seed=" if ":" in spec else ":seed=") + str(seed))
        return decode(codec, encode(codec, x, stream), np.float32)[np.arange(x.size) % 512 > 0] > 0.75

    share = roundings(0, 0).mean()
    alike = share**2 + (1 - share) ** 2
    given = roundings(0, 0)
    assert (given == roundings(0, 0)).all()
    for other in (roundings(0, 1), roundings(1, 0), roundings(2**40, 0)):
        assert abs((given == other).mean() - alike) < 0.03
    blocks = given.reshape(40, 511)
    assert abs((blocks[1:] == blocks[:-1]).mean() - alike) < 0.03
    assert abs((blocks[:, 1:] == blocks[:, :-1]).mean() - alike) < 0.03


@each_dtype
def test_feedback_with_the_largest_magnitude_stays_bounded(dtype):
    """A residual is below the distance of two levels, which does not grow."""
    for codec in (QSGD(levels=2, feedback=True), QSGD(levels=3, spacing="natural", feedback=True)):
        residual = np.zeros(2048, dtype)
        buffer = np.empty(codec.max_encoded_nbytes(2048, dtype), np.uint8)
        rng = np.random.default_rng(0)
        for stream in range(200):
            x = rng.uniform(-1, 1, 2048).astype(dtype)
            codec.encode_feedback(x, residual, buffer, stream=stream)
            assert np.abs(residual).max() <= 1 + 2.0**-12  # half of the norm, which is at most 1 + that


def test_feedback_with_the_euclidean_norm_diverges():
    codec = QSGD(levels=7, norm="l2")
    residual = np.zeros(2048, np.float32)
    buffer = np.empty(codec.max_encoded_nbytes(2048, residual.dtype), np.uint8)
    rng = np.random.default_rng(0)
    lengths = []
    for stream in range(200):
        codec.encode_feedback(rng.standard_normal(2048, dtype=np.float32), residual, buffer, stream=stream)
        lengths.append(np.linalg.norm(residual))
    assert lengths[199] > 100 * lengths[9]


@pytest.mark.parametrize(
    ("codec", "bits"),
    [(QSGD(), 5), (QSGD(levels=3, spacing="natural"), 3), (QSGD(levels=4), 4), (QSGD(levels=127), 8), (TernGrad(), 2)],
    ids=repr,
)
def test_frames_are_small(codec, bits):
    x = normal(1 << 18)
    assert encode(codec, x).nbytes == HEADER_NBYTES + (bits / 8 + 4 / 512) * x.size


@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (ValueError, "levels", 0),
        (ValueError, "levels", 128),
        (TypeError, "levels", 3.0),
        (ValueError, "norm", "l1"),
        (ValueError, "spacing", "log"),
        (ValueError, "block", 128),
        (ValueError, "block", 384),
        (TypeError, "block", 512.0),
        (ValueError, "seed", -1),
        (TypeError, "feedback", 1),
    ],
)
def test_parameters_of_qsgd_are_checked(error, parameter, value):
    with pytest.raises(error, match=f"{parameter}: .*{value!r}"):
        QSGD(**{parameter: value})


def test_feedback_that_diverges_is_refused():
    with pytest.raises(ValueError, match=r"feedback: .*norm='l2'"):
        QSGD(feedback=True, norm="l2")


@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (ValueError, "clip", -1),
        (ValueError, "clip", float("inf")),
        (ValueError, "clip", float("nan")),
        (TypeError, "clip", "2.5"),
        (TypeError, "clip", True),
        (ValueError, "block", 100),
        (TypeError, "seed", 0.5),
    ],
)
def test_parameters_of_terngrad_are_checked(error, parameter, value):
    with pytest.raises(error, match=f"{parameter}: .*{value!r}"):
        TernGrad(**{parameter: value})


def test_terngrad_has_no_feedback():
    with pytest.raises(ValueError, match="feedback"):
        as_codec("terngrad:feedback")


def test_equal_clips_give_equal_digests():
    assert TernGrad(clip=2).digest == TernGrad(clip=2.0).digest == as_codec("terngrad:clip=2").digest
