"""Sums of integers: exact, in any order, rounded nowhere on their way."""

import itertools

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal, same_bits
from helpers import operands, peak, reference, run

from collcomp.codecs import HBound
from collcomp.frame import Envelope, Frame

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
each_count = pytest.mark.parametrize("count", [1, 255, 256, 1000, 5120])
CODEC = HBound(abs=1e-3)


def step_of(codec, dtype):
    return float(codec._grid(codec.abs, dtype)[0, 0])


def encode_sum(codec, frames, own, divisor=1, kept=None):
    """The frame of the sum of `frames` and `own`, or None."""
    kept = np.empty_like(own) if kept is None else kept
    buffer = np.empty(codec.max_encoded_nbytes(own.size, own.dtype), np.uint8)
    nbytes = codec.encode_sum(frames, own, 0, divisor, kept, buffer, Envelope(own.dtype, own.size))
    return None if nbytes is None else (Frame.read(buffer[:nbytes]), kept)


@each_dtype
@each_count
@pytest.mark.parametrize("divisor", [1, 5])
def test_sums_are_those_of_the_decoded_operands(dtype, count, divisor):
    xs = operands(5, count, dtype)
    frames = [encode(CODEC, x) for x in xs]
    frame, kept = encode_sum(CODEC, frames[1:], xs[0], divisor)
    decoded = decode(CODEC, frame, dtype)
    assert same_bits(decoded, kept)
    # In float64 these sums of float32 grid points are exact; what is decoded is rounded to the dtype once or twice.
    exact = sum(np.rint(decode(CODEC, one, dtype) / step_of(CODEC, dtype)) for one in frames) * step_of(CODEC, dtype)
    np.testing.assert_allclose(decoded, exact / divisor, rtol=2 * np.finfo(dtype).eps, atol=0)
    assert peak(decoded - reference(xs) / divisor) <= len(xs) / divisor * CODEC.abs


@each_dtype
@each_count
def test_any_order_gives_the_same_frame(dtype, count):
    frames = [encode(CODEC, x) for x in operands(4, count, dtype)]
    zeros = np.zeros(count, dtype)
    expected, _ = encode_sum(CODEC, frames, zeros)
    for order in itertools.permutations(frames):
        total = order[0]
        for frame in order[1:]:
            total, _ = encode_sum(CODEC, [total, frame], zeros)
        assert same_bits(total.payload, expected.payload)
    pairs = [encode_sum(CODEC, frames[i : i + 2], zeros)[0] for i in (0, 2)]
    assert same_bits(encode_sum(CODEC, pairs, zeros)[0].payload, expected.payload)


@each_dtype
def test_own_operand_may_be_where_the_result_goes(dtype):
    xs = operands(2, 512, dtype)
    frame, kept = encode_sum(CODEC, [encode(CODEC, xs[1])], xs[0].copy())
    own = xs[0].copy()
    again, _ = encode_sum(CODEC, [encode(CODEC, xs[1])], own, kept=own)
    assert same_bits(again.payload, frame.payload)
    assert same_bits(own, kept)


@each_dtype
@pytest.mark.parametrize("where", ["own", "other"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_raw_blocks_are_left_to_floats(dtype, where, value):
    xs = operands(2, 1000, dtype)
    xs[where == "other"][700] = value
    assert encode_sum(CODEC, [encode(CODEC, xs[1])], xs[0]) is None


def test_divided_sums_and_other_bounds_are_left_to_floats():
    """Their grids are others."""
    xs = operands(2, 300)
    halved, _ = encode_sum(CODEC, [encode(CODEC, xs[1])], xs[0], 2)
    assert encode_sum(CODEC, [halved], xs[0]) is None


def test_averages_whose_step_the_dtype_has_no_room_for_are_left_to_floats():
    codec = HBound(abs=4 * float(np.finfo(np.float32).tiny))
    zeros = np.zeros(300, np.float32)
    assert encode_sum(codec, [encode(codec, zeros)], zeros) is not None
    assert encode_sum(codec, [encode(codec, zeros)], zeros, 16) is None


@each_dtype
def test_many_large_operands(dtype):
    """The largest integers of the most operands still fit 32 bits."""
    most = 2**15 - 1 if dtype == np.float32 else 2**11 - 1
    largest = float(CODEC._grid(CODEC.abs, dtype)[2, 0])
    x = np.array([largest, -largest] * 3, dtype)
    frame = encode(CODEC, x)
    assert frame.extra == 0
    total, _ = encode_sum(CODEC, [frame] * (most - 1), x)
    np.testing.assert_allclose(decode(CODEC, total, dtype), most * x.astype(float), rtol=1e-6, atol=most * CODEC.abs)
    assert encode_sum(CODEC, [frame] * most, x) is None


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("op", ["sum", "avg"])
@each_dtype
def test_allreduce(size, op, dtype):
    """Within the bound, with one rounding, and the same bits on all ranks."""

    def program(comm):
        recv = np.empty(3001, dtype)
        comm.allreduce(operands(size, 3001, dtype)[comm.rank], recv, op, codec=CODEC)
        return recv

    xs = operands(size, 3001, dtype)
    found = run(size, program)
    assert same_bits(np.concatenate(found), np.tile(found[0], size))
    assert peak(found[0] - reference(xs, op)) <= CODEC.abs * (size if op == "sum" else 1)
    step = step_of(CODEC, dtype)
    integers = sum(np.rint(decode(CODEC, encode(CODEC, x), dtype) / step) for x in xs)
    expected = integers * step / (1 if op == "sum" else size)
    np.testing.assert_allclose(found[0], expected, rtol=2 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("op", ["sum", "avg"])
def test_allreduce_with_values_that_have_no_integer(op):
    size, count = 3, 2000

    def program(comm):
        x = operands(size, count)[comm.rank]
        x[5] = 1e6
        recv = np.empty(count, np.float32)
        comm.allreduce(x, recv, op, codec=CODEC)
        return recv

    found = run(size, program)
    assert same_bits(np.concatenate(found), np.tile(found[0], size))
    xs = operands(size, count)
    for x in xs:
        x[5] = 1e6
    error = np.abs(found[0] - reference(xs, op))
    assert error[5] <= 1
    assert np.delete(error, 5).max() <= CODEC.abs * (size if op == "sum" else 2) + 1e-6


@each_dtype
def test_bound_at_every_distance_from_zero(dtype):
    rng = np.random.default_rng(0)
    for bits in range(17):
        step = step_of(CODEC, dtype)
        x = ((np.rint(2.0**bits * rng.uniform(0.5, 1, 5000)) + 0.5) * step).astype(dtype)
        x = np.concatenate([np.nextafter(x, dtype.type(0)), x, np.nextafter(x, dtype.type(np.inf))])
        frame = encode(CODEC, x)
        assert peak(decode(CODEC, frame, dtype).astype(float) - x) <= CODEC.abs
        assert bits > 15 or frame.extra == 0


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_bound_is_checked(value):
    with pytest.raises(ValueError, match=f"abs: .*{value!r}"):
        HBound(abs=value)


def test_smaller_than_floats():
    x = normal(1 << 16, seed=2)
    assert encode(HBound(abs=1e-2), x).nbytes < x.nbytes / 2
