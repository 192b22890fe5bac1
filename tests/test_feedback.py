"""Residuals by key."""

import numpy as np
import pytest
from helpers import BF16, F16, F32, F64

from collcomp.feedback import Residuals


@pytest.mark.parametrize(("dtype", "working"), [(F32, F32), (F64, F64), (F16, F32), (BF16, F32)])
def test_starts_at_zero_in_working_dtype(dtype, working):
    residual = Residuals().get("w", 5, dtype)
    assert residual.dtype == working
    assert residual.tolist() == [0] * 5


def test_is_updated_in_place_and_by_key():
    residuals = Residuals()
    residuals.get("w", 2, F32)[...] = [3, 4]
    residuals.get("b", 2, F32)[...] = 1
    assert residuals.get("w", 2, F32).tolist() == [3, 4]
    assert residuals.norm("w") == 5
    assert residuals.norm("unknown") == 0


@pytest.mark.parametrize(("count", "dtype"), [(3, F32), (2, F64)])
def test_another_shape_under_the_same_key(count, dtype):
    residuals = Residuals()
    residuals.get("w", 2, F32)
    with pytest.raises(ValueError, match=f"key: 'w' was used for 2 elements of float32, now for {count} of {dtype}"):
        residuals.get("w", count, dtype)


def test_reset():
    residuals = Residuals()
    for key in "abc":
        residuals.get(key, 1, F32)[...] = 1
    residuals.reset("a")
    assert [residuals.norm(key) for key in "abc"] == [0, 1, 1]
    residuals.reset()
    assert [residuals.norm(key) for key in "abc"] == [0, 0, 0]
    residuals.get("b", 7, F64)  # a key that was reset may change its shape


def test_state_is_a_copy_both_ways():
    residuals = Residuals()
    residuals.get("w", 3, F32)[...] = [1, 2, 3]
    state = residuals.state_dict()
    residuals.get("w", 3, F32)[...] = 0
    assert state["w"].tolist() == [1, 2, 3]
    other = Residuals()
    other.load_state_dict(state)
    state["w"][...] = 0
    assert other.get("w", 3, F32).tolist() == [1, 2, 3]
    assert np.array_equal(other.state_dict()["w"], [1, 2, 3])
