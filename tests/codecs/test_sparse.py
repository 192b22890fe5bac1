"""Top-k: exactly the largest, whatever the data."""

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal

from collcomp.codecs import TopK
from collcomp.frame import Frame

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
COUNT = 50_000


def expected(x, k):
    """The selection by a stable sort."""
    bits = x.view(f"i{x.itemsize}") & np.iinfo(f"i{x.itemsize}").max
    chosen = np.sort(np.argsort(-bits, kind="stable")[:k])
    out = np.zeros_like(x)
    out[chosen] = x[chosen]
    return chosen, out


def check_selection(codec, x):
    """The frame of `x` holds the expected elements, bit by bit."""
    k = codec.selected(x.size)
    chosen, values = expected(x, k)
    frame = encode(codec, x)
    indices, _ = codec.selection(frame)
    np.testing.assert_array_equal(indices, chosen)
    assert decode(codec, frame, x.dtype).tobytes() == values.tobytes()


def steps(rng, dtype):
    """Few distinct values, as in data that was bfloat16 before."""
    return rng.integers(-3, 4, COUNT).astype(dtype)


def clustered(rng, dtype):
    """All large elements side by side."""
    x = rng.standard_normal(COUNT).astype(dtype) * dtype.type(1e-6)
    x[30_000:31_000] += dtype.type(5)
    return x


def periodic(rng, dtype):
    """Spikes at a period that a strided sample might never or always hit."""
    x = np.full(COUNT, 1e-3, dtype)
    x[::64] = 10
    return x


def odd_values(rng, dtype):
    """NaN, infinities, subnormals, zeros of both signs."""
    x = rng.standard_normal(COUNT).astype(dtype)
    x[rng.integers(0, COUNT, 300)] = np.nan
    x[rng.integers(0, COUNT, 300)] = -np.inf
    x[rng.integers(0, COUNT, 3000)] = 1e-42
    x[rng.integers(0, COUNT, 3000)] = -0.0
    return x


DATA = {
    "normal": lambda rng, dtype: rng.standard_normal(COUNT).astype(dtype),
    "scales": lambda rng, dtype: normal(COUNT, dtype),
    "zeros": lambda rng, dtype: np.zeros(COUNT, dtype),
    "constant": lambda rng, dtype: np.full(COUNT, -2.5, dtype),
    "nan": lambda rng, dtype: np.full(COUNT, np.nan, dtype),
    "mostly zero": lambda rng, dtype: np.where(rng.random(COUNT) < 1e-4, 1, 0).astype(dtype),
    "rising": lambda rng, dtype: np.arange(COUNT, dtype=dtype),
    "steps": steps,
    "clustered": clustered,
    "periodic": periodic,
    "odd values": odd_values,
}


@each_dtype
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("k", [1, 7, 500, 5000, COUNT - 1, COUNT])
def test_selection_is_exact(name, k, dtype):
    check_selection(TopK(k=k), DATA[name](np.random.default_rng(0), dtype))


@each_dtype
@pytest.mark.parametrize("name", DATA)
def test_feedback_selects_from_the_sum(name, dtype):
    """Residual and source are added first; what was selected leaves the residual."""
    codec = TopK(k=500)
    x = DATA[name](np.random.default_rng(0), dtype)
    residual = normal(COUNT, dtype, seed=2)
    total = residual + x
    buffer = np.empty(codec.max_encoded_nbytes(COUNT, dtype), np.uint8)
    nbytes = codec.encode_feedback(x, residual, buffer)
    chosen, values = expected(total, 500)
    assert decode(codec, Frame.read(buffer[:nbytes]), dtype).tobytes() == values.tobytes()
    total[chosen] = 0
    assert residual.tobytes() == total.tobytes()


@each_dtype
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 100, 4095, 4097, 16384, 16400, 20_001])
def test_any_count(count, dtype):
    for codec in (TopK(), TopK(ratio=0.3), TopK(ratio=1.0), TopK(k=10)):
        check_selection(codec, normal(count, dtype))


@pytest.mark.parametrize(
    ("codec", "count", "k"),
    [
        (TopK(), 0, 0),
        (TopK(), 1, 1),
        (TopK(), 100, 1),
        (TopK(), 101, 2),
        (TopK(ratio=1.0), 7, 7),
        (TopK(k=5), 3, 3),
        (TopK(k=5), 0, 0),
        (TopK(k=5), 1000, 5),
    ],
)
def test_number_of_selected(codec, count, k):
    assert codec.selected(count) == k


def test_error_is_at_most_the_smallest_selected():
    x = normal(10_000)
    decoded = decode(TopK(), encode(TopK(), x), np.float32)
    assert np.abs(x - decoded).max() <= np.abs(decoded[decoded != 0]).min()


def test_default_is_one_percent():
    assert TopK() == TopK(ratio=0.01)
    assert TopK().digest == TopK(ratio=0.01).digest


@pytest.mark.parametrize(
    ("error", "parameters"),
    [
        (ValueError, {"ratio": 0.0}),
        (ValueError, {"ratio": -0.1}),
        (ValueError, {"ratio": 1.1}),
        (ValueError, {"ratio": float("nan")}),
        (TypeError, {"ratio": "0.1"}),
        (TypeError, {"ratio": True}),
        (ValueError, {"k": 0}),
        (ValueError, {"k": -3}),
        (TypeError, {"k": 1.5}),
        (TypeError, {"k": True}),
        (ValueError, {"ratio": 0.1, "k": 3}),
        (TypeError, {"feedback": 0}),
    ],
)
def test_parameters_are_checked(error, parameters):
    name, value = next(iter(parameters.items()))
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        TopK(**parameters)
