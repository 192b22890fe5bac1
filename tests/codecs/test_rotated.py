"""Rotation before quantisation: orthonormal, exact to rounding, and worth it where there are outliers."""

import numpy as np
import pytest
from checks import WORKING, check_decode_add, check_encode_keep, check_feedback, decode, encode, normal, same_bits

from collcomp.codecs import BF16, FP16, Hadamard, Identity, Int4, Int8, TopK, as_codec
from collcomp.codecs.rotated import diagonal, rotated_size
from collcomp.frame import HEADER_NBYTES, Frame
from collcomp.kernels.cpu import rotation

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
each_size = pytest.mark.parametrize("size", [256, 512, 1024, 2048, 4096, 8192, 65536])


def hadamard_matrix(size):
    """By Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def rotate(x, size, dtype):
    """Rotated blocks of `x`, and what says which are not."""
    y, plain = np.full(-(-x.size // size) * size, 7, dtype), np.full(-(-x.size // size // 8), 0xFF, np.uint8)
    rotation.rotate(x, None, diagonal(5, size, dtype), y, plain)
    return y, plain


@each_dtype
@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_rotation_is_the_transform(size, dtype):
    x = np.random.default_rng(0).standard_normal(3 * size).astype(dtype)
    y, plain = rotate(x, size, dtype)
    exact = (x.reshape(3, size) * diagonal(5, size, np.dtype(float))) @ hadamard_matrix(size)
    np.testing.assert_allclose(y.reshape(3, size), exact, rtol=0, atol=32 * np.finfo(dtype).eps)
    assert not plain.any()


@each_dtype
@each_size
def test_rotation_keeps_lengths_and_is_undone(size, dtype):
    x = np.random.default_rng(0).standard_normal(2 * size).astype(dtype)
    y, plain = rotate(x, size, dtype)
    lengths = [np.linalg.norm(z.astype(float).reshape(2, size), axis=1) for z in (x, y)]
    np.testing.assert_allclose(*lengths, rtol=4 * np.finfo(dtype).eps)
    rotation.unrotate(y, diagonal(5, size, dtype), plain)
    np.testing.assert_allclose(y, x, rtol=0, atol=np.log2(size) * np.finfo(dtype).eps * np.abs(x).max())


@each_dtype
def test_order_of_additions_is_fixed(dtype):
    """The bits are those of stages of width 1, 2, 4, ... in that order, however they were put together."""
    size = 4096
    x = np.random.default_rng(0).standard_normal(size).astype(dtype)
    expected = x * diagonal(5, size, dtype)
    width = 1
    while width < size:
        pairs = expected.reshape(-1, 2, width)
        expected = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).ravel()
        width *= 2
    assert same_bits(rotate(x, size, dtype)[0], expected)


@pytest.mark.parametrize("size", [256, 1024, 65536])
def test_signs_are_random(size):
    signs = diagonal(1, size, np.dtype(float)) * np.sqrt(size)
    np.testing.assert_allclose(np.abs(signs), 1)
    for other in (diagonal(2, size, np.dtype(float)) * np.sqrt(size), np.roll(signs, 1)):
        assert abs((signs * other).mean()) < 5 / np.sqrt(size)
    assert abs(signs.mean()) < 5 / np.sqrt(size)


@each_dtype
@pytest.mark.parametrize("inner", ["int4", "int8", "int4:rounding=stochastic"])
def test_outliers_cost_little(inner, dtype):
    """Without the rotation each outlier sets the scale of its block."""
    x = np.random.default_rng(0).standard_normal(64 * 1024).astype(dtype)
    x[::500] *= 100
    errors = []
    for codec in (as_codec(inner), as_codec(f"hadamard+{inner}")):
        errors.append(np.linalg.norm(decode(codec, encode(codec, x), dtype) - x))
    assert errors[1] < 0.5 * errors[0]


@each_dtype
@pytest.mark.parametrize("count", [1, 255, 257, 1023, 1024, 1025, 1300, 5000])
def test_error_bound(count, dtype):
    """The error of a block is as long as the inner codec's: half a step each way."""
    codec = Hadamard(inner=Int8(block=256))
    x = normal(count, dtype)
    decoded = decode(codec, encode(codec, x), dtype)
    for start in range(0, count, 1024):
        block = x[start : start + 1024].astype(float)
        size = 1024 if block.size == 1024 else rotated_size(block.size, 1024)
        step = np.linalg.norm(block) / 127  # no rotated value is larger than the norm
        assert np.linalg.norm(decoded[start : start + 1024] - block) <= step / 2 * np.sqrt(size) * (1 + 2.0**-10)


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**90, -(2.0**126)], ids=lambda value: f"{value:.3g}")
@pytest.mark.parametrize("count", [1024, 3000, 3072, 5000])
@pytest.mark.parametrize("inner", [Int4(), Int8(block=64, rounding="stochastic"), FP16()], ids=repr)
@np.errstate(all="ignore")
def test_what_is_not_finite_does_not_spread(inner, count, value, dtype):
    codec = Hadamard(inner=inner)
    x = normal(count, dtype)
    x[5] = x[-1] = value
    plain = np.zeros(count, bool)
    plain[:1024] = plain[(count - 1) // 1024 * 1024 :] = True
    decoded = decode(codec, encode(codec, x), dtype)
    alone = decode(inner, encode(inner, x), dtype)
    check_decode_add(codec, x)
    check_encode_keep(codec, x)
    if inner == Int4():  # not stochastic, and its blocks start where those of the rotation do
        assert same_bits(decoded[plain], alone[plain])
    if not np.isfinite(value):
        assert same_bits(decoded[[5, -1]], x[[5, -1]])
    assert (np.isfinite(decoded) == np.isfinite(x.astype(np.float16) if inner == FP16() else x)).all()
    assert np.abs(decoded - x)[~plain].max(initial=0) <= np.abs(x[~plain]).max(initial=0)
    residual = np.zeros(count, dtype)
    buffer = np.empty(codec.max_encoded_nbytes(count, dtype), np.uint8)
    nbytes = codec.encode_feedback(x, residual, buffer)
    assert np.isfinite(residual).all()
    again = decode(codec, Frame.read(buffer[:nbytes]), dtype)
    np.testing.assert_array_equal(again, decoded)
    good = np.isfinite(decoded)
    np.testing.assert_array_equal(residual[good], (x - decoded)[good])
    assert not residual[~good].any()


@each_dtype
def test_large_values_that_are_rotated_stay_finite(dtype):
    codec = Hadamard(block=65536, inner=Int8())
    x = np.full(2 * 65536, 2.0**89, dtype)
    x *= np.where(diagonal(0, 65536, dtype) < 0, -1, 1).astype(dtype).repeat(2)
    decoded = decode(codec, encode(codec, x), dtype)
    assert np.isfinite(decoded).all()
    assert np.linalg.norm(decoded / 2.0**89 - x / 2.0**89) < 0.02 * np.sqrt(x.size)


@each_dtype
def test_feedback_of_what_comes_last(dtype):
    check_feedback(Hadamard(inner=Int4(), feedback=True), normal(5000, dtype), rounds=12)


def test_seeds_rotate_differently():
    x = normal(4096)
    frames = [encode(Hadamard(seed=seed), x).payload for seed in (0, 0, 1)]
    assert same_bits(frames[0], frames[1])
    assert not same_bits(frames[1], frames[2])


def test_frames_are_small():
    x = normal(1 << 18)
    assert encode(Hadamard(), x).nbytes <= 0.518 / 4 * x.nbytes + HEADER_NBYTES


def test_specs():
    assert as_codec("hadamard") == Hadamard() == as_codec("hadamard+int4")
    codec = as_codec("hadamard:block=512,feedback+int8:block=64")
    assert codec == Hadamard(block=512, feedback=True, inner=Int8(block=64))
    assert codec.spec == "hadamard:block=512,feedback+int8:block=64"
    assert Hadamard(inner=BF16()).spec == "hadamard+bf16"


@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (ValueError, "block", 128),
        (ValueError, "block", 1000),
        (ValueError, "block", 1 << 17),
        (TypeError, "block", 1024.0),
        (ValueError, "seed", -1),
        (TypeError, "feedback", 1),
        (TypeError, "inner", "int4"),
        (ValueError, "inner", TopK()),
        (ValueError, "inner", Identity()),
        (ValueError, "inner", Hadamard()),
        (ValueError, "inner", Int4(feedback=True)),
    ],
)
def test_parameters_are_checked(error, parameter, value):
    shown = repr(value.spec if parameter == "inner" and not isinstance(value, str) else value)
    with pytest.raises(error, match=f"{parameter}: .*{shown.replace('+', '[+]')}"):
        Hadamard(**{parameter: value})
