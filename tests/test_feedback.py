"""Residuals by key."""

import numpy as np
import pytest
from helpers import BF16, F16, F32, F64

from collcomp.codecs import as_codec
from collcomp.feedback import Residuals, reshard
from collcomp.frame import Frame

LOSSY = as_codec("int4:feedback")


@pytest.mark.parametrize(("dtype", "working"), [(F32, F32), (F64, F64), (F16, F32), (BF16, F32)])
def test_starts_at_zero_in_working_dtype(dtype, working):
    residual = Residuals().get("w", 5, dtype, LOSSY).residual
    assert residual.dtype == working
    assert residual.tolist() == [0] * 5


def test_is_updated_in_place_and_by_key():
    residuals = Residuals()
    residuals.get("w", 2, F32, LOSSY).residual[...] = [3, 4]
    residuals.get("b", 2, F32, LOSSY).residual[...] = 1
    assert residuals.get("w", 2, F32, LOSSY).residual.tolist() == [3, 4]
    assert residuals.norm("w") == 5
    assert residuals.norm("unknown") == 0


@pytest.mark.parametrize(("count", "dtype"), [(3, F32), (2, F64)])
def test_another_shape_under_the_same_key(count, dtype):
    residuals = Residuals()
    residuals.get("w", 2, F32, LOSSY)
    with pytest.raises(ValueError, match=f"key: 'w' was used for 2 elements of float32, now for {count} of {dtype}"):
        residuals.get("w", count, dtype, LOSSY)


def test_reset():
    residuals = Residuals()
    for key in "abc":
        residuals.get(key, 1, F32, LOSSY).residual[...] = 1
    residuals.reset("a")
    assert [residuals.norm(key) for key in "abc"] == [0, 1, 1]
    residuals.reset()
    assert [residuals.norm(key) for key in "abc"] == [0, 0, 0]
    residuals.get("b", 7, F64, LOSSY)  # a key that was reset may change its shape


def test_state_is_a_copy_both_ways():
    residuals = Residuals()
    residuals.get("w", 3, F32, LOSSY).residual[...] = [1, 2, 3]
    state = residuals.state_dict()
    residuals.get("w", 3, F32, LOSSY).residual[...] = 0
    assert state["residuals"]["w"].tolist() == [1, 2, 3]
    other = Residuals()
    other.load_state_dict(state)
    state["residuals"]["w"][...] = 0
    assert other.get("w", 3, F32, LOSSY).residual.tolist() == [1, 2, 3]
    assert np.array_equal(other.state_dict()["residuals"]["w"], [1, 2, 3])


def test_states_of_parts_are_kept_and_copied():
    residuals = Residuals()
    _, state = residuals.get("w", 10, F32, LOSSY).part(slice(2, 7))
    state["calls"] = np.array(3)
    saved = residuals.state_dict()
    state["calls"] = np.array(4)
    other = Residuals()
    other.load_state_dict(saved)
    assert other.get("w", 10, F32, LOSSY).part(slice(2, 7))[1]["calls"] == 3
    assert other.get("w", 10, F32, LOSSY).part(slice(0, 7))[1] == {}


def test_a_key_is_used_with_feedback_or_without():
    residuals = Residuals()
    residuals.get("w", 10, F32, LOSSY)
    with pytest.raises(ValueError, match="key: 'w' was used with feedback, now for 'int4'"):
        residuals.get("w", 10, F32, as_codec("int4"))


def test_learning_rate_scales_what_waits():
    residuals = Residuals()
    residual = residuals.get("w", 2, F32, LOSSY).residual
    residual[...] = [1, -2]
    residuals.learning_rate = 0.1
    assert residual.tolist() == [1, -2]
    residuals.learning_rate = 0.05
    assert residual.tolist() == [2, -4]
    with pytest.raises(ValueError, match=r"learning_rate: .*-1"):
        residuals.learning_rate = -1
    other = Residuals()
    other.load_state_dict(residuals.state_dict())
    assert other.learning_rate == 0.05


@pytest.mark.parametrize("corrected", [True, False])
def test_corrected_feedback_follows_the_uncompressed_path(corrected):
    """x_t - lr_{t-1} e_t equals the uncompressed path for any codec, whatever the step sizes."""
    codec = as_codec("topk:ratio=0.01,feedback")
    rng = np.random.default_rng(0)
    residuals, buffer = Residuals(), np.empty(codec.max_encoded_nbytes(500, F64), np.uint8)
    compressed, true, rate = np.zeros(500), np.zeros(500), 0.1
    for _ in range(50):
        if corrected:
            residuals.learning_rate = rate
        residual = residuals.get("w", 500, F64, codec).residual
        gradient = rng.standard_normal(500)
        nbytes = codec.encode_feedback(gradient, residual, buffer)
        codec.decode(Frame.read(buffer[:nbytes]), sent := np.empty(500))
        compressed -= rate * sent
        true -= rate * gradient
        last, rate = rate, rate * 0.9
    gap = np.abs(compressed - last * residual - true).max()
    assert gap < 1e-14 if corrected else gap > 0.01


@pytest.mark.parametrize("size", [1, 2, 5])
def test_reshard_keeps_the_mean(size):
    rng = np.random.default_rng(size)
    states = []
    for rank in range(3):
        residuals = Residuals()
        memory = residuals.get("w", 100, F32, LOSSY)
        memory.residual[...] = rng.standard_normal(100)
        memory.part(slice(0, 100))[1].update(same=np.arange(3))
        memory.part(slice(0, 50))[1].update(own=np.array(rank))
        states.append(residuals.state_dict())
    mean = np.mean([state["residuals"]["w"] for state in states], 0, dtype=F64)
    fresh = [Residuals() for _ in range(size)]
    for residuals in fresh:
        residuals.load_state_dict(reshard(states))
    found = [residuals.get("w", 100, F32, LOSSY) for residuals in fresh]
    np.testing.assert_allclose(np.mean([memory.residual for memory in found], 0, dtype=F64), mean, atol=1e-7)
    assert found[0].part(slice(0, 100))[1]["same"].tolist() == [0, 1, 2]
    assert found[0].part(slice(0, 50))[1] == {}


def test_reshard_of_nothing():
    with pytest.raises(ValueError, match="states"):
        reshard([])
