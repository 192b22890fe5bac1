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


# Messages that consist of several tensors.

TENSORS = [("a", 2), ("b", 3), ("c", 4)]


def joined(residuals, *names, dtype=F32, codec=LOSSY):
    return residuals.together([tensor for tensor in TENSORS if tensor[0] in names], dtype, codec)


def test_residuals_lie_side_by_side():
    residuals = Residuals()
    memory = joined(residuals, "a", "b", "c")
    assert memory.residual.tolist() == [0] * 9
    memory.residual[...] = range(9)
    assert [residuals.get(key, n, F32, LOSSY).residual.tolist() for key, n in TENSORS] == [
        [0, 1],
        [2, 3, 4],
        [5, 6, 7, 8],
    ]
    residuals.get("b", 3, F32, LOSSY).residual[1] = 30  # the same memory
    assert memory.residual[3] == 30
    assert joined(residuals, "a", "b", "c") is memory
    assert residuals.norm("a") == 1


def test_residuals_move_when_tensors_are_regrouped():
    residuals = Residuals()
    memory = joined(residuals, "a", "b", "c")
    memory.residual[...] = range(9)
    memory.part(slice(0, 9))[1]["calls"] = np.array(3)
    other = joined(residuals, "a", "c")
    assert other.residual.tolist() == [0, 1, 5, 6, 7, 8]
    assert other.part(slice(0, 9))[1] == {}  # belongs to the way in which they were put together
    other.residual += 100
    alone = residuals.get("b", 3, F32, LOSSY)
    assert alone.residual.tolist() == [2, 3, 4]
    alone.residual += 200
    back = joined(residuals, "a", "b", "c")
    assert back.residual.tolist() == [100, 101, 202, 203, 204, 105, 106, 107, 108]
    assert back.part(slice(0, 9))[1] == {}
    swapped = residuals.together([("b", 3), ("a", 2)], F32, LOSSY)
    assert swapped.residual.tolist() == [202, 203, 204, 100, 101]


def test_groups_that_share_no_tensor_stay():
    residuals = Residuals()
    first, second = joined(residuals, "a"), joined(residuals, "b", "c")
    assert (joined(residuals, "a"), joined(residuals, "b", "c")) == (first, second)


def test_residuals_of_integers_start_anew():
    codec = as_codec("loco")
    kept = codec.residual_dtype(F32)
    assert kept.kind == "i"
    residuals = Residuals()
    memory = joined(residuals, "a", "b", codec=codec)
    memory.residual[...] = 1
    assert joined(residuals, "a", "b", codec=codec) is memory
    assert memory.residual.tolist() == [1] * 5
    assert joined(residuals, "b", "c", codec=codec).residual.tolist() == [0] * 7  # their scales were the others'


def test_without_feedback_nothing_is_kept():
    residuals = Residuals()
    plain = as_codec("int4")
    memory = joined(residuals, "a", "b", codec=plain)
    assert memory.residual is None
    assert joined(residuals, "a", "b", codec=plain) is memory
    with pytest.raises(ValueError, match="key: 'a' was used without feedback, now for 'int4:feedback'"):
        joined(residuals, "a", "b")


@pytest.mark.parametrize(
    ("tensors", "dtype"), [([("a", 2), ("b", 4)], F32), ([("a", 3), ("b", 3)], F32), ([("a", 2), ("b", 3)], F64)]
)
def test_other_counts_under_the_same_keys(tensors, dtype):
    residuals = Residuals()
    joined(residuals, "a", "b")
    with pytest.raises(ValueError, match=r"key: '[ab]' was used for . elements of float32, now for"):
        residuals.together(tensors, dtype, LOSSY)
    assert joined(residuals, "a", "b").residual.size == 5


def test_reset_of_one_of_several():
    residuals = Residuals()
    joined(residuals, "a", "b").residual[...] = 1
    residuals.reset("a")
    assert joined(residuals, "a", "b").residual.tolist() == [0, 0, 1, 1, 1]
    residuals.reset()
    assert joined(residuals, "a", "b").residual.tolist() == [0] * 5


def test_groups_in_a_checkpoint():
    residuals = Residuals()
    memory = joined(residuals, "a", "b")
    memory.residual[...] = range(5)
    memory.part(slice(0, 5))[1]["calls"] = np.array(3)
    saved = residuals.state_dict()
    memory.residual[...] = 0
    memory.part(slice(0, 5))[1]["calls"] = np.array(4)
    for key, _ in TENSORS[:2]:
        assert saved["residuals"][key].base is None  # no views of what goes on
    other = Residuals()
    other.load_state_dict(saved)
    loaded = joined(other, "a", "b")
    assert loaded.residual.tolist() == [0, 1, 2, 3, 4]
    assert loaded.part(slice(0, 5))[1]["calls"] == 3
    loaded.residual += 1
    assert other.get("b", 3, F32, LOSSY).residual.tolist() == [3, 4, 5]
    assert saved["residuals"]["b"].tolist() == [2, 3, 4]
    assert joined(other, "b", "c").residual.tolist() == [3, 4, 5, 0, 0, 0, 0]


def test_integers_in_a_checkpoint():
    codec = as_codec("loco")
    residuals = Residuals()
    joined(residuals, "a", "b", codec=codec).residual[...] = [1, 2, 3, 4, 5]
    other = Residuals()
    other.load_state_dict(residuals.state_dict())
    assert joined(other, "a", "b", codec=codec).residual.tolist() == [1, 2, 3, 4, 5]


def test_learning_rate_scales_a_group_once():
    residuals = Residuals()
    residuals.learning_rate = 1.0
    memory = joined(residuals, "a", "b")
    memory.residual[...] = range(5)
    memory.part(slice(0, 5))[1]["scales"] = np.array([8.0])
    residuals.learning_rate = 0.5
    assert memory.residual.tolist() == [0, 2, 4, 6, 8]
    assert memory.part(slice(0, 5))[1]["scales"] == 16
    assert joined(residuals, "a", "b") is memory


def test_reshard_of_groups():
    states = []
    for rank in range(2):
        residuals = Residuals()
        memory = joined(residuals, "a", "b")
        memory.residual[...] = np.arange(5) + rank
        memory.part(slice(0, 5))[1].update(same=np.arange(3))
        memory.part(slice(0, 2))[1].update(own=np.array(rank))
        joined(residuals, "c", codec=as_codec("loco")).residual[...] = 1
        states.append(residuals.state_dict())
    fresh = Residuals()
    fresh.load_state_dict(reshard(states))
    memory = joined(fresh, "a", "b")
    assert memory.residual.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert memory.part(slice(0, 5))[1]["same"].tolist() == [0, 1, 2]
    assert memory.part(slice(0, 2))[1] == {}
    assert not joined(fresh, "c", codec=as_codec("loco")).residual.any()
