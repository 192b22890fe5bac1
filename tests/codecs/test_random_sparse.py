"""Random selections: drawn alike everywhere, fair, and summed without their indices."""

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal
from lockstep import reduce_in_lockstep

from collcomp.codecs import RandomBlock, RandomK
from collcomp.frame import Frame

BOTH = (RandomK, RandomBlock)
each = pytest.mark.parametrize("kind", BOTH)


def selected(codec, x, stream=0):
    """Indices of the selection, ascending and different; their values are those of `x`."""
    frame = encode(codec, x, stream)
    indices, values = codec.selection(frame)
    assert (np.diff(indices.astype(np.int64)) > 0).all()
    assert indices.size == codec.selected(x.size)
    assert not indices.size or indices[-1] < x.size
    expected = x[indices] * (x.dtype.type(x.size / indices.size) if codec.scaled else 1)
    np.testing.assert_array_equal(values, expected)
    return indices


@each
@pytest.mark.parametrize("dtype", WORKING, ids=str)
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.49, 0.5, 0.51, 0.9, 1.0])
def test_any_count_and_ratio(kind, count, ratio, dtype):
    for scaled in (False, True):
        codec = kind(ratio=ratio, scaled=scaled)
        for stream in range(3):
            selected(codec, normal(count, dtype), stream)


@each
def test_same_seed_and_stream_same_selection(kind):
    x, y = normal(5000), normal(5000, seed=1)
    a = selected(kind(seed=3), x, 7)
    np.testing.assert_array_equal(a, selected(kind(seed=3), y, 7))
    assert not np.array_equal(a, selected(kind(seed=3), x, 8))
    assert not np.array_equal(a, selected(kind(seed=4), x, 7))


@each
def test_no_indices_on_the_wire(kind):
    assert encode(kind(k=10), normal(1000)).payload.size == 40


@each
@pytest.mark.parametrize("k", [7, 40, 63])
def test_every_element_is_equally_likely(kind, k):
    """How often each is selected is within 6 standard deviations of k / n."""
    count, rounds = 64, 4000
    codec = kind(k=k)
    x = normal(count)
    hits = np.zeros(count)
    for stream in range(rounds):
        hits[selected(codec, x, stream)] += 1
    p = k / count
    assert np.abs(hits - rounds * p).max() < 6 * np.sqrt(rounds * p * (1 - p))
    assert hits.sum() == rounds * k


def test_pairs_are_equally_likely():
    """Without replacement, and one element says nothing of another: k (k - 1) / n (n - 1) for each pair."""
    count, k, rounds = 12, 4, 20_000
    codec = RandomK(k=k)
    x = normal(count)
    together = np.zeros((count, count))
    for stream in range(rounds):
        hit = np.zeros(count)
        hit[selected(codec, x, stream)] = 1
        together += np.outer(hit, hit)
    p = k * (k - 1) / (count * (count - 1))
    pairs = together[~np.eye(count, dtype=bool)]
    assert np.abs(pairs - rounds * p).max() < 6 * np.sqrt(rounds * p * (1 - p))


def test_blocks_are_contiguous_and_wrap():
    codec = RandomBlock(k=30)
    x = normal(100)
    starts = set()
    for stream in range(2000):
        indices = selected(codec, x, stream)
        gaps = np.flatnonzero(np.diff(indices) > 1)
        assert gaps.size <= 1
        if gaps.size:  # the part at the end is the beginning of the block
            assert indices[0] == 0
            assert indices[-1] == 99
        starts.add(int(indices[gaps[0] + 1] if gaps.size else indices[0]))
    assert starts == set(range(100))


@each
def test_staleness(kind):
    """With feedback an element waits n / k steps on average until it is sent, and what is sent is what gathered."""
    count, k, rounds = 200, 20, 3000
    codec = kind(k=k, feedback=True)
    ones, residual = np.ones(count, np.float32), np.zeros(count, np.float32)
    buffer = np.empty(codec.max_encoded_nbytes(count, ones.dtype), np.uint8)
    waits = []
    for stream in range(rounds):
        frame = Frame.read(buffer[: codec.encode_feedback(ones, residual, buffer, stream=stream)])
        indices, values = codec.selection(frame)
        assert not residual[indices].any()
        waits.append(values.astype(float))
    waits = np.concatenate(waits[200:])
    assert abs(waits.mean() - count / k) < 0.05 * count / k


@each
@pytest.mark.parametrize("dtype", WORKING, ids=str)
def test_scaled_is_unbiased(kind, dtype):
    """The mean over streams nears the values; its error is that of independent draws."""
    count, rounds = 50, 5000
    codec = kind(ratio=0.2, scaled=True)
    x = normal(count, dtype)
    total = np.zeros(count)
    for stream in range(rounds):
        total += decode(codec, encode(codec, x, stream), dtype)
    deviation = np.abs(x) * np.sqrt((1 / 0.2 - 1) / rounds)
    assert (np.abs(total / rounds - x) < 6 * deviation).all()


@each
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", WORKING, ids=str)
@pytest.mark.parametrize("count", [0, 1, 100, 1001])
@pytest.mark.parametrize("in_place", [False, True])
def test_reduction(kind, count, dtype, scaled, in_place):
    """All ranks send the same elements, in one round of k values."""
    codec = kind(ratio=0.1, scaled=scaled)
    operands = [normal(count, dtype, seed=rank) for rank in range(3)]
    results, sent = reduce_in_lockstep(codec, operands, shared=5, in_place=in_place)
    assert [(array.size, op) for array, op in sent] == [(codec.selected(count), "sum")]
    indices, _ = codec.selection(encode(codec, operands[0], 5))  # the selection of that stream
    factor = dtype.type(count / indices.size) if scaled and indices.size else 1
    expected = np.zeros(count, dtype)
    expected[indices] = (operands[0] * factor + operands[1] * factor + operands[2] * factor)[indices]
    for result in results:
        assert result.tobytes() == expected.tobytes()


@each
def test_reduction_with_feedback(kind):
    codec = kind(ratio=0.1, feedback=True)
    operands = [normal(500, seed=rank) for rank in range(2)]
    residuals = [normal(500, seed=10 + rank) for rank in range(2)]
    totals = [x + e for x, e in zip(operands, residuals, strict=True)]
    results, _ = reduce_in_lockstep(codec, operands, shared=1, residuals=residuals)
    indices, _ = codec.selection(encode(codec, operands[0], 1))
    for total, residual in zip(totals, residuals, strict=True):
        kept = total.copy()
        kept[indices] = 0
        assert residual.tobytes() == kept.tobytes()
    expected = np.zeros(500, np.float32)
    expected[indices] = (totals[0] + totals[1])[indices]
    assert results[0].tobytes() == expected.tobytes()


@each
def test_special_values_arrive_as_they_are(kind):
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42] * 20, np.float32)
    decoded = decode(kind(ratio=1.0), encode(kind(ratio=1.0), x), np.float32)
    assert decoded.tobytes() == x.tobytes()


@each
@pytest.mark.parametrize(
    ("error", "parameters"),
    [
        (ValueError, {"scaled": True, "feedback": True}),
        (TypeError, {"scaled": 1}),
        (ValueError, {"seed": -1}),
        (TypeError, {"seed": 1.5}),
        (ValueError, {"ratio": 2.0}),
        (ValueError, {"k": 0}),
    ],
)
def test_parameters_are_checked(kind, error, parameters):
    name, value = next(iter(parameters.items()))
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        kind(**parameters)
