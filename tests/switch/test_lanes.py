"""What arrays become on their way through a switch."""

import numpy as np
import pytest
from helpers import BF16, F16, F32, F64, same_bits
from hypothesis import given
from hypothesis import strategies as st

from collcomp.frame import DTYPES
from collcomp.kernels.cpu import packets
from collcomp.switch.lanes import carried_as, from_lanes, to_lanes
from collcomp.switch.programs import EXACT, lanes_for


def lanes_of(dtype, how):
    return lanes_for(EXACT, *carried_as(dtype, how))


FLOATS = {F32: packets.FLOAT32, F16: packets.FLOAT16, BF16: packets.BFLOAT16}
pytestmark = pytest.mark.filterwarnings("ignore:invalid value")  # bfloat16 NaN compared
ORDERED = pytest.mark.parametrize("how", ["max", "min"])
EVERY = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)


def any_bits(dtype, seed=0, count=4096):
    """Values of every kind; booleans have no others than two."""
    generator = np.random.default_rng(seed)
    if dtype.kind == "b":
        return generator.integers(0, 2, count).astype(bool)
    values = generator.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
    if dtype in FLOATS or dtype == F64:
        values[:7] = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan], dtype)
    return values


@pytest.mark.parametrize("how", ["sum", "max", "min", "or"])
@EVERY
def test_lanes_are_as_wide_as_elements(dtype, how):
    if (dtype, how) == (F64, "sum"):
        with pytest.raises(TypeError, match="not of float64"):
            lanes_of(dtype, how)
        return
    lanes = lanes_of(dtype, how)
    assert packets.WIDTHS[lanes] == (1 if how == "or" else dtype.itemsize)
    assert (lanes in FLOATS.values()) == (how == "sum" and dtype in FLOATS)


@pytest.mark.parametrize("dtype", ["c16", "V3", np.longdouble])
@pytest.mark.parametrize("how", ["sum", "max"])
def test_dtypes_that_do_not_travel(dtype, how):
    with pytest.raises(TypeError, match="dtype: "):
        lanes_of(np.dtype(dtype), how)


@ORDERED
@EVERY
def test_order_is_kept(dtype, how):
    """The largest key is that of the value that wins; NaN wins against all."""
    a, b = any_bits(dtype, 1), any_bits(dtype, 2)
    unsigned = f"u{dtype.itemsize}"
    keys = np.maximum(to_lanes(a, how).view(unsigned), to_lanes(b, how).view(unsigned))
    from_lanes(keys.view(np.uint8), result := np.empty_like(a), how)
    wide = F64 if dtype in FLOATS else dtype
    expected = (np.maximum if how == "max" else np.minimum)(a.astype(wide), b.astype(wide))
    np.testing.assert_array_equal(result.astype(wide), expected)


@ORDERED
@EVERY
def test_there_and_back(dtype, how):
    values = any_bits(dtype)
    before = values.copy()
    lanes = to_lanes(values, how)
    assert lanes.dtype == np.uint8
    assert lanes.size == values.nbytes
    from_lanes(lanes, back := np.empty_like(values), how)
    assert same_bits(values, before), "the operand has changed"
    numbers = values == values  # NaN comes back as one NaN
    assert same_bits(back[numbers], values[numbers])
    assert not (back[~numbers] == back[~numbers]).any()


def test_zeros_have_an_order():
    zeros = np.array([0.0, -0.0], F32)
    keys = to_lanes(zeros, "max").view(np.uint32)
    assert keys[0] > keys[1]


@pytest.mark.parametrize("how", ["sum", "or"])
def test_sums_are_the_bytes_themselves(how):
    values = np.arange(10, dtype=np.uint8)
    assert np.shares_memory(to_lanes(values, how), values)


@ORDERED
@EVERY
def test_nothing(dtype, how):
    lanes = to_lanes(np.empty(0, dtype), how)
    assert lanes.size == 0
    from_lanes(lanes, np.empty(0, dtype), how)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2))
def test_keys_of_floats_are_ordered_as_they_are(pair):
    a, b = np.array(pair, F32)
    one, other = to_lanes(np.array([a, b]), "max").view(np.uint32)
    if a != b:
        assert (one > other) == (a > b)
