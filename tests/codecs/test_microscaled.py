"""Small floats with scales: ml_dtypes' own rounding, scales, error bounds, stochastic rounding."""

import ml_dtypes
import numpy as np
import pytest
from checks import WORKING, check_decode_add, check_encode_keep, decode, encode, normal, same_bits

from collcomp.codecs import FP8E4M3, FP8E5M2, MXFP4, MXFP8
from collcomp.frame import HEADER_NBYTES, Envelope, Frame, align

NARROW = {
    FP8E4M3: ml_dtypes.float8_e4m3fn,
    FP8E5M2: ml_dtypes.float8_e5m2,
    MXFP8: ml_dtypes.float8_e4m3fn,
    MXFP4: ml_dtypes.float4_e2m1fn,
}
LARGEST = {cls: float(ml_dtypes.finfo(narrow).max) for cls, narrow in NARROW.items()}
SMALLEST = {cls: float(ml_dtypes.finfo(narrow).smallest_subnormal) for cls, narrow in NARROW.items()}
each_format = pytest.mark.parametrize("cls", NARROW)
each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
each_rounding = pytest.mark.parametrize("rounding", ["nearest", "stochastic"])


def scales_of(codec, frame):
    """The scale of each element, in float64."""
    stored = codec._checked_sections(frame).scales
    powers = 2.0 ** (stored.astype(float) - 127) if stored.dtype == np.uint8 else stored.astype(float)
    return powers.repeat(codec.block)[: frame.count]


def codes_of(codec, frame):
    """The code of each element; of whole blocks only."""
    codes = codec._checked_sections(frame).codes.view(np.uint8)
    if codec._codes_per_byte == 1:
        return codes
    rows = codes.reshape(-1, codec.block // 2)
    return np.concatenate([rows & 15, rows >> 4], axis=1).ravel()


def peaks(x, block):
    """The largest magnitude of the block of each element, in float64."""
    padded = np.zeros(-(-x.size // block) * block)
    padded[: x.size] = np.abs(x.astype(float))
    return padded.reshape(-1, block).max(1).repeat(block)[: x.size]


def in_blocks(values, largest, block, dtype=np.float32):
    """`values` spread over blocks that all begin with `largest`."""
    rows = np.zeros((-(-values.size // (block - 1)), block))
    rows[:, 0] = largest
    rows[:, 1:].flat[: values.size] = values
    return rows.ravel().astype(dtype)


def numbers(cls):
    """All finite numbers of the format that are not negative, ascending."""
    codes = np.arange(128 if cls is not MXFP4 else 8, dtype=np.uint8).view(NARROW[cls])
    values = codes.astype(np.float64)
    return values[np.isfinite(values)]


@each_format
@each_dtype
def test_every_code_decodes_as_ml_dtypes_has_it(cls, dtype):
    codec = cls()
    x = np.zeros(256, dtype)
    x[:: codec.block] = LARGEST[cls]
    frame = encode(codec, x)
    assert (scales_of(codec, frame) == 1).all()
    sections = codec._checked_sections(frame)
    if cls is MXFP4:
        sections.codes.view(np.uint8)[:] = np.tile(np.arange(16, dtype=np.uint8) * 0x11, 8)
        expected = codes_of(codec, frame).view(NARROW[cls])
    else:
        sections.codes.view(np.uint8)[:] = np.arange(256)
        expected = np.arange(256, dtype=np.uint8).view(NARROW[cls])
    decoded = decode(codec, frame, dtype)
    np.testing.assert_array_equal(decoded, expected.astype(dtype))
    number = ~np.isnan(decoded)
    assert (np.signbit(decoded) == np.signbit(expected.astype(dtype)))[number].all()
    acc = np.ones(256, dtype)
    codec.decode_add(frame, acc)
    np.testing.assert_array_equal(acc, 1 + decoded)


@each_format
@pytest.mark.parametrize("exponent", [-100, -3, 0, 30, 100])
def test_float32_is_rounded_as_ml_dtypes_does(cls, exponent):
    """Random bits, all numbers, all ties, and what lies beside them; then with other scales."""
    codec = cls()
    exact = numbers(cls).astype(np.float32)
    ties = ((exact[1:].astype(float) + exact[:-1]) / 2).astype(np.float32)
    marks = np.concatenate([exact, ties])
    rng = np.random.default_rng(0)
    spread = rng.integers(0, np.float32(LARGEST[cls]).view(np.uint32), 50_000, dtype=np.uint32).view(np.float32)
    even = rng.random(20_000, np.float32) * np.float32(LARGEST[cls])
    tiny = rng.random(5000, np.float32) * np.float32(4 * SMALLEST[cls])
    values = np.concatenate([marks, np.nextafter(marks, 0), np.nextafter(marks, np.inf, dtype=np.float32), spread])
    values = np.concatenate([values, even, tiny])
    values = values[values <= LARGEST[cls]]
    x = in_blocks(np.concatenate([values, -values]), LARGEST[cls], codec.block)
    scaled = x * np.float32(2.0**exponent)
    kept = scaled / np.float32(2.0**exponent)  # without bits that are lost below float32's range
    frame = encode(codec, scaled)
    assert (scales_of(codec, frame) == 2.0**exponent).all()
    np.testing.assert_array_equal(codes_of(codec, frame), kept.astype(NARROW[cls]).view(np.uint8))


@each_format
def test_float64_is_rounded_once(cls):
    """Values just beside a tie, which float32 cannot tell from it."""
    codec = cls()
    exact = numbers(cls)
    ties = (exact[1:] + exact[:-1]) / 2
    for factor, expected in ((1 + 2.0**-45, exact[1:]), (1 - 2.0**-45, exact[:-1])):
        x = in_blocks(ties * factor, LARGEST[cls], codec.block, np.float64)
        decoded = decode(codec, encode(codec, x), np.float64)
        np.testing.assert_array_equal(decoded, in_blocks(expected, LARGEST[cls], codec.block, np.float64))


@each_format
@each_rounding
@each_dtype
@pytest.mark.parametrize("exponent", [0, -20, 60, -110])
def test_error_bound(cls, rounding, dtype, exponent):
    codec = cls(rounding=rounding)
    x = normal(30_011, dtype) * dtype.type(2.0**exponent)
    x[1000:2000] *= (10.0 ** -np.linspace(0, 12, 1000)).astype(dtype)  # down into the subnormal numbers
    x[:32] = np.linspace(-1, 1, 32)
    decoded = decode(codec, encode(codec, x), dtype).astype(float)
    m, magnitudes = peaks(x, codec.block), np.abs(x.astype(float))
    relative, absolute, least = {
        (FP8E4M3, "nearest"): (2.0**-4, 2.0**-17, 2.0**-136),
        (FP8E5M2, "nearest"): (2.0**-3, 2.0**-31, 2.0**-143),
        (MXFP8, "nearest"): (2.0**-4, 2.0**-18, 2.0**-136),
        (MXFP4, "nearest"): (2.0**-2, 1 / 16, 2.0**-128),
        (FP8E4M3, "stochastic"): (2.0**-3, 2.0**-16, 2.0**-135),
        (FP8E5M2, "stochastic"): (2.0**-2, 2.0**-30, 2.0**-142),
        (MXFP8, "stochastic"): (2.0**-3, 2.0**-16, 2.0**-135),
        (MXFP4, "stochastic"): (2.0**-1, 1 / 6, 2.0**-127),
    }[cls, rounding]
    relative = np.full(x.size, relative)
    if cls is MXFP8 and rounding == "nearest":
        relative[magnitudes > 448 * 2.0 ** (np.floor(np.log2(np.maximum(m, 1e-300))) - 8)] = 2.0**-3
    assert (np.abs(decoded - x) <= np.maximum(np.maximum(relative * magnitudes, absolute * m), least)).all()


@each_format
@each_rounding
@each_dtype
def test_scales(cls, rounding, dtype):
    """FP8: the smallest with which nothing saturates; MX: by the largest exponent, unless that would be biased."""
    codec = cls(rounding=rounding)
    largest = np.concatenate([2.0 ** np.arange(-100, 101), numbers(cls)[-4:], [1.3, 1.7, 1.76, 1e-3]])
    largest = np.concatenate([largest, np.nextafter(largest.astype(dtype), dtype.type(np.inf))])
    x = np.zeros((largest.size, codec.block), dtype)
    x[:, 5] = -largest
    frame = encode(codec, x.ravel())
    scales = scales_of(codec, frame)[:: codec.block]
    m = np.abs(x[:, 5]).astype(float)
    if cls in (MXFP8, MXFP4) and rounding == "nearest":
        expected = 2.0 ** (np.floor(np.log2(m)) - np.floor(np.log2(LARGEST[cls])))
        saturated = np.minimum(m, LARGEST[cls] * expected)
        coarse = m > LARGEST[cls] * expected
        np.testing.assert_array_equal(-decode(codec, frame, dtype)[5 :: codec.block][coarse], saturated[coarse])
        assert coarse.any()
    else:
        expected = 2.0 ** np.ceil(np.log2(m / LARGEST[cls]))
        expected[expected / 2 * LARGEST[cls] >= m] /= 2
        expected[expected * LARGEST[cls] < m] *= 2
    np.testing.assert_array_equal(scales, expected)


@pytest.mark.parametrize("cls", [FP8E4M3, FP8E5M2])
@pytest.mark.parametrize("block", [32, 96, 224, 1024])
def test_other_blocks(cls, block):
    codec = cls(block=block)
    x = normal(10_007)
    frame = encode(codec, x)
    scales = scales_of(codec, frame).astype(np.float32)
    assert (peaks(x, block) <= LARGEST[cls] * scales).all()
    np.testing.assert_array_equal(
        decode(codec, frame, np.float32), (x / scales).astype(NARROW[cls]).astype(np.float32) * scales
    )


@each_format
@each_rounding
@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [256, 511, 700, 1000])
def test_what_is_not_finite_travels_as_it_is(cls, rounding, dtype, value, count):
    check_raw(cls(rounding=rounding), normal(count, dtype), value)


@each_format
@each_rounding
@pytest.mark.parametrize("value", [1e300, -(2.0**127)])
def test_what_is_too_large_for_a_scale_travels_as_it_is(cls, rounding, value):
    check_raw(cls(rounding=rounding), normal(700, np.float64), value)


def check_raw(codec, x, value):
    """With `value` the last block of `x` arrives bit by bit, with every method; the others do not notice."""
    start = (x.size - 1) // codec.block * codec.block
    x[start:] = 0
    x[-3], x[-1] = value, -0.0
    frame = encode(codec, x)
    assert frame.extra == 1
    decoded = decode(codec, frame, x.dtype)
    assert same_bits(decoded[start:], x[start:])
    assert same_bits(decoded[:start], decode(codec, encode(codec, x[:start]), x.dtype))
    check_decode_add(codec, x)
    check_encode_keep(codec, x)
    residual = np.zeros_like(x)
    buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    nbytes = codec.encode_feedback(x, residual, buffer)
    assert not residual[start:].any()
    np.testing.assert_array_equal(decode(codec, Frame.read(buffer[:nbytes]), x.dtype), decoded)


@each_format
@each_rounding
@each_dtype
def test_raw_blocks_among_others(cls, rounding, dtype):
    """Blocks are encoded in groups: each raw one goes to its own place, the others to theirs."""
    codec = cls(rounding=rounding)
    x = normal(20_011, dtype)
    clean = decode(codec, encode(codec, x), dtype)
    x[np.random.default_rng(0).choice(x.size, 20, replace=False)] = np.nan
    raw = np.isnan(peaks(x, codec.block))
    frame = encode(codec, x)
    assert 1 < frame.extra == np.unique(np.flatnonzero(raw) // codec.block).size
    assert same_bits(decode(codec, frame, dtype), np.where(raw, x, clean))
    check_decode_add(codec, x)
    check_encode_keep(codec, x)
    residual = np.zeros_like(x)
    codec.encode_feedback(x, residual, np.empty(codec.max_encoded_nbytes(x.size, dtype), np.uint8))
    assert same_bits(residual + 0, np.where(raw, 0, x - clean).astype(dtype) + 0)


@each_format
@each_dtype
def test_all_blocks_raw(cls, dtype):
    x = np.full(777, np.nan, dtype)
    frame = encode(cls(), x)
    assert frame.extra == -(-777 // cls().block)
    assert frame.nbytes == cls().max_encoded_nbytes(777, dtype)
    assert same_bits(decode(cls(), frame, dtype), x)


@each_format
@each_rounding
@each_dtype
def test_zeros_keep_their_sign_and_tiny_values_vanish(cls, rounding, dtype):
    codec = cls(rounding=rounding)
    x = np.zeros(512, dtype)
    x[::3] = -0.0
    assert same_bits(decode(codec, encode(codec, x), dtype), x)
    x[7] = 5e-44
    decoded = decode(codec, encode(codec, x), dtype)
    assert decoded[7] in (0, dtype.type(SMALLEST[cls] * 2.0**-126))
    if rounding == "nearest":
        assert decoded[7] == 0
    assert not np.delete(decoded, 7).any()


@each_format
@each_rounding
@each_dtype
def test_nothing_overflows(cls, rounding, dtype):
    """Just below 2**127 rounding up is safe; from there on blocks travel raw."""
    x = np.zeros((100, cls().block), dtype)
    x[:, 5] = np.nextafter(dtype.type(2.0**127), dtype.type(0))
    codec = cls(rounding=rounding)
    frame = encode(codec, x.ravel())
    assert frame.extra == 0
    decoded = decode(codec, frame, dtype)
    assert (np.abs(decoded - x.ravel()) <= 2.0**125).all()
    check_raw(codec, normal(700, dtype), np.finfo(np.float32).max)


@each_format
@each_dtype
@pytest.mark.parametrize("subnormal", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.77])
def test_stochastic_rounding_is_unbiased(cls, dtype, subnormal, share):
    """The mean error of many roundings of one value is that of independent, fair ones."""
    codec = cls(rounding="stochastic", seed=3)
    exact = numbers(cls)
    low, high = exact[:2] if subnormal else exact[-2:]
    value = dtype.type(low + share * (high - low))
    share = (float(value) - low) / (high - low)
    x = in_blocks(np.full(100_000, value), LARGEST[cls], codec.block, dtype)
    inside = np.flatnonzero(np.arange(x.size) % codec.block)[:100_000]
    up = (decode(codec, encode(codec, x, 5), dtype)[inside].astype(float) - low) / (high - low)
    assert set(np.unique(up)) <= {0.0, 1.0}
    assert abs(up.mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / up.size) + 2.0**-20


@pytest.mark.parametrize("cls", [MXFP8, MXFP4])
def test_stochastic_rounding_of_the_largest_is_unbiased(cls):
    """It lies between the largest number and the next power of two, where rounding to nearest saturates."""
    x = np.zeros((20_000, 32), np.float32)
    x[:, 3] = -1.9
    codec = cls(rounding="stochastic")
    decoded = decode(codec, encode(codec, x.ravel()), np.float32).reshape(x.shape)[:, 3].astype(float)
    assert abs(decoded.mean() + 1.9) < 4.5 * decoded.std() / np.sqrt(decoded.size)
    saturated = decode(cls(), encode(cls(), x.ravel()), np.float32).reshape(x.shape)[:, 3]
    assert (saturated == (-1.75 if cls is MXFP8 else -1.5)).all()


@each_format
def test_streams_and_seeds_are_independent(cls):
    exact = numbers(cls)
    block = cls().block
    x = in_blocks(np.full(10_000 // (block - 1) * (block - 1), exact[-2:].mean()), LARGEST[cls], block)

    def roundings(seed, stream):
        codec = cls(rounding="stochastic", seed=seed)
        up = decode(codec, encode(codec, x, stream), np.float32) == exact[-1]
        return up.reshape(-1, block)[:, 1:]

    given = roundings(0, 0)
    assert (given == roundings(0, 0)).all()
    for other in (roundings(0, 1), roundings(1, 0), roundings(1, 1), roundings(2**40, 0)):
        assert abs((given == other).mean() - 0.5) < 0.03
    assert abs((given[1:] == given[:-1]).mean() - 0.5) < 0.03
    assert abs((given[:, 1:] == given[:, :-1]).mean() - 0.5) < 0.03


@each_format
@each_rounding
@each_dtype
@pytest.mark.parametrize("count", [1, 256, 1000, 5000])
@pytest.mark.parametrize("position", [0, 1, 3])
def test_encode_sum_is_decode_add_and_encode(cls, rounding, dtype, count, position):
    codec = cls(rounding=rounding)
    operands = [normal(count, dtype, seed=seed) for seed in range(4)]
    frames = [encode(codec, x, stream) for stream, x in enumerate(operands) if stream != position]
    own = operands[position]
    total = np.zeros(count, dtype)
    others = iter(frames)
    for rank in range(4):
        if rank == position:
            total += own
        else:
            codec.decode_add(next(others), total)
    total /= dtype.type(4)
    expected_kept, kept = np.empty_like(own), own.copy()
    expected, got = (np.empty(codec.max_encoded_nbytes(count, dtype), np.uint8) for _ in range(2))
    envelope = Envelope(dtype, count)
    size = codec.encode_keep(total, expected_kept, expected, envelope, stream=9)
    assert codec.encode_sum(frames, kept, position, 4, kept, got, envelope, stream=9) == size
    assert same_bits(got[:size], expected[:size])
    assert same_bits(kept, expected_kept)


@each_format
def test_encode_sum_gives_way_to_raw_blocks(cls):
    codec = cls()
    x = normal(100)
    raw = x.copy()
    raw[3] = np.nan
    buffer = np.empty(codec.max_encoded_nbytes(100, x.dtype), np.uint8)
    assert codec.encode_sum([encode(codec, raw)], x, 0, 1, x, buffer, Envelope(x.dtype, 100)) is None
    huge = [encode(codec, np.full(100, 1.5 * 2.0**126, np.float32)) for _ in range(4)]
    nbytes = codec.encode_sum(huge, x, 4, 1, x, buffer, Envelope(x.dtype, 100))
    assert np.isinf(decode(codec, Frame.read(buffer[:nbytes]), np.float32)).all()


@each_format
@pytest.mark.parametrize("count", [32, 1000, 4096])
def test_sections_are_aligned(cls, count):
    codec = cls()
    blocks, filled = -(-count // codec.block), -(-count // 32) * 32
    frame = encode(codec, np.ones(count, np.float32))
    start = align(blocks * codec._scale_dtype.itemsize)
    assert frame.payload.size == start + filled // codec._codes_per_byte
    assert not frame.payload[blocks * codec._scale_dtype.itemsize : start].any()
    assert frame.payload[start] == (codes_of(codec, frame)[0] if cls is not MXFP4 else 0x66 if count > 16 else 0x06)


@pytest.mark.parametrize(
    ("cls", "limit"), [(FP8E4M3, 1.016 / 4), (FP8E5M2, 1.016 / 4), (MXFP8, 1.032 / 4), (MXFP4, 0.532 / 4)]
)
def test_frames_are_small(cls, limit):
    x = normal(1 << 18)
    assert encode(cls(), x).nbytes <= limit * x.nbytes + HEADER_NBYTES


@each_format
def test_scales_make_them_unfit_for_max_and_min(cls):
    assert not cls().monotone


@each_format
@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (ValueError, "rounding", "up"),
        (ValueError, "seed", -1),
        (TypeError, "seed", 0.5),
        (TypeError, "feedback", 1),
    ],
)
def test_parameters_are_checked(cls, error, parameter, value):
    with pytest.raises(error, match=f"{parameter}: .*{value!r}"):
        cls(**{parameter: value})


@pytest.mark.parametrize("cls", [FP8E4M3, FP8E5M2])
@pytest.mark.parametrize("value", [0, 16, 33, -32, 256.0, True])
def test_block_is_checked(cls, value):
    with pytest.raises((ValueError, TypeError), match=f"block: .*{value!r}"):
        cls(block=value)


@pytest.mark.parametrize("cls", [MXFP8, MXFP4])
def test_block_is_given_by_the_format(cls):
    assert cls().block == 32
    with pytest.raises(TypeError, match="block"):
        cls(block=64)
