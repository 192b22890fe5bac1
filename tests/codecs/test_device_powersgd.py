"""PowerSGD on a device."""

import numpy as np
import pytest
from device import to_device
from lockstep import reduce_in_lockstep
from on_device import assert_same_bits, check_same, frame_of

from collcomp.codecs import PowerSGD
from collcomp.errors import FrameError
from collcomp.kernels import cpu, cuda

# Kernels compute with what is not finite as with all else.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")


@pytest.mark.parametrize(
    ("count", "columns", "rank", "real"),
    [
        (750, 150, 4, np.float32),  # more than a stride of columns
        (9 * 33 - 4, 33, 5, np.float32),  # the last row is not full
        (77 * 40 + 1, 40, 1, np.float64),  # more than a tile of rows, and one element of another
        (7, 3, 1, np.float32),  # less than four whole rows
    ],
)
def test_products(count, columns, rank, real):
    there, here = cuda.load("powersgd"), cpu.load("powersgd")
    rng = np.random.default_rng(count)
    rows = -(-count // columns)
    x, addend = rng.standard_normal((2, count)).astype(real)
    p, q = rng.standard_normal((rows, rank)).astype(real), rng.standard_normal((rank, columns)).astype(real)
    x[::7], addend[::7] = 0, -0.0
    sums, room = np.empty(4 * here.LANES, real), np.empty(here.TILE, real)
    x_there, p_there, q_there, addend_there = map(to_device, (x, p, q, addend))

    for added, added_there in ((None, None), (addend, addend_there)):
        here.project(x, added, q, p, sums)
        there.project(x_there, added_there, q_there, p_there)
        assert_same_bits(x_there, x)
        assert_same_bits(p_there, p)
    here.project_back(x, p, q)
    there.project_back(x_there, p_there, q_there)
    assert_same_bits(q_there, q)
    here.multiply_add(p, q, x, room)
    there.multiply_add(p_there, q_there, x_there)
    assert_same_bits(x_there, x)
    here.multiply(p, q, x)
    there.multiply(p_there, q_there, x_there)
    assert_same_bits(x_there, x)


#: Two matrices, and what travels as it is: two vectors, a scalar and a matrix that is too small.
SHAPES = ((8, 12), (5,), (2, 3), (7, 2, 7), (), (9,))
SEVERAL = PowerSGD(rank=2, min_rate=1, shapes=SHAPES, feedback=True)
FIRST, SECOND = slice(0, 96), slice(107, 205)


def values(count, real, seed=0):
    return np.random.default_rng([seed, count]).standard_normal(count).astype(real)


@pytest.mark.parametrize(
    ("codec", "count", "real"),
    [
        (PowerSGD(rank=4, columns=20, min_rate=1, feedback=True), 8 * 20 - 7, np.float32),
        (PowerSGD(rank=1, columns=16, feedback=True), 8 * 16, np.float64),
        (PowerSGD(feedback=True), 33, np.float32),
        (PowerSGD(feedback=True), 0, np.float32),
    ],
)
def test_frames(codec, count, real):
    check_same(codec, values(count, real), residual=values(count, real, seed=1))


def test_frames_of_several_of_which_one_is_not_finite():
    x = values(SEVERAL.fixed_count, np.float32)
    x[SECOND][5] = np.nan
    check_same(SEVERAL, x, residual=np.zeros_like(x))


def test_damaged_marks():
    x = values(SEVERAL.fixed_count, np.float32)
    payload = np.zeros(SEVERAL.max_payload_nbytes(x.size, x.dtype), np.uint8)
    outcome = SEVERAL._encode(x, payload, 0)
    payload[outcome[0] - 1] = 2
    with pytest.raises(FrameError, match="a matrix is marked 2, expected 0 or 1"):
        SEVERAL._decode(frame_of(SEVERAL, x, to_device(payload), outcome), to_device(x))


@pytest.mark.parametrize(
    ("codec", "count", "real"),
    [(SEVERAL, SEVERAL.fixed_count, np.float32), (PowerSGD(rank=1, feedback=True), 200, np.float64)],
)
def test_sums(codec, count, real):
    """The same in three calls, in the second of which a matrix is not finite on one rank, in the third its products."""
    residuals, states, states_there = [np.zeros(count, real) for _ in range(2)], [{}, {}], [{}, {}]
    residuals_there = [to_device(residual) for residual in residuals]
    for call, odd in enumerate((0, np.inf, np.finfo(real).max)):
        operands = [values(count, real, seed=2 * call + rank) for rank in range(2)]
        operands[1][FIRST][7:9] += real(odd)
        expected, sent = reduce_in_lockstep(codec, operands, residuals=residuals, states=states)
        found, sent_there = reduce_in_lockstep(
            codec, [to_device(x) for x in operands], residuals=residuals_there, states=states_there
        )
        assert [(array.size, op) for array, op in sent_there] == [(array.size, op) for array, op in sent]
        for there, here in zip([*found, *residuals_there], [*expected, *residuals], strict=True):
            assert_same_bits(there, here)
        for there, here in zip(states_there, states, strict=True):
            assert there.keys() == here.keys()
            assert all(np.array_equal(there[name], here[name]) for name in here)


def test_what_is_remembered_serves_host_and_device():
    codec, x, state, state_there = PowerSGD(rank=1), values(200, np.float32), {}, {}
    reduce_in_lockstep(codec, [x], states=[state])
    reduce_in_lockstep(codec, [to_device(x)], states=[state_there])
    (expected,), _ = reduce_in_lockstep(codec, [x], states=[state_there])
    (found,), _ = reduce_in_lockstep(codec, [to_device(x)], states=[state])
    assert_same_bits(found, expected)
