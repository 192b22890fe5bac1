"""PowerSGD: best approximations of low rank, the same on all ranks."""

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal, same_bits
from lockstep import reduce_in_lockstep

from collcomp.codecs import PowerSGD
from collcomp.codecs.powersgd import _orthonormal
from collcomp.frame import Frame
from collcomp.kernels import cpu

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
ROWS, COLUMNS = 60, 40
#: Compresses every matrix of the tests below.
CODEC = PowerSGD(rank=4, columns=COLUMNS, min_rate=1)


def matrices(number, rank=None, dtype=np.float64, seed=0):
    """Flat matrices, whose sum is of `rank` where given."""
    rng = np.random.default_rng(seed)
    if rank is None:
        return [rng.standard_normal(ROWS * COLUMNS).astype(dtype) for _ in range(number)]
    left = rng.standard_normal((ROWS, rank))
    return [(left @ rng.standard_normal((rank, COLUMNS))).ravel().astype(dtype) for _ in range(number)]


def plain_sum(operands):
    """The sum in rank order, in the operands' own dtype."""
    total = operands[0].copy()
    with np.errstate(all="ignore"):
        for x in operands[1:]:
            total += x
    return total


def distance(x, y):
    """Frobenius norm of the difference, relative to `y`."""
    return np.linalg.norm(x.astype(float) - y.astype(float)) / np.linalg.norm(y.astype(float))


def encode_feedback(codec, x, residual, state):
    """The frame's decoded values."""
    buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    nbytes = codec.encode_feedback(x, residual, buffer, state=state)
    return decode(codec, Frame.read(buffer[:nbytes]), x.dtype)


@each_dtype
@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_sums_of_low_rank_are_exact(size, rank, dtype):
    operands = matrices(size, rank, dtype)
    results, _ = reduce_in_lockstep(CODEC, operands)
    expected = plain_sum([x.astype(float) for x in operands])
    # A few roundings of sums of up to ROWS products.
    assert distance(results[0], expected) < 8 * np.finfo(dtype).eps


@each_dtype
@pytest.mark.parametrize("rank", [1, 4])
def test_frames_of_low_rank_are_exact(rank, dtype):
    (x,) = matrices(1, rank, dtype)
    assert distance(decode(CODEC, encode(CODEC, x), dtype), x) < 8 * np.finfo(dtype).eps


@each_dtype
@pytest.mark.parametrize("in_place", [False, True])
def test_all_ranks_get_the_same_bits(in_place, dtype):
    operands, states = matrices(3, dtype=dtype), [{}, {}, {}]
    for _ in range(3):
        results, _ = reduce_in_lockstep(CODEC, operands, states=states, in_place=in_place)
        assert all(same_bits(result, results[0]) for result in results)
        assert all(same_bits(state["q"], states[0]["q"]) for state in states)


def test_constant_matrix_approaches_the_best_approximation():
    """Each call is a step of power iteration: the gap closes by the square of the ratio of singular values, 0.7."""
    rng = np.random.default_rng(3)
    left, _ = np.linalg.qr(rng.standard_normal((ROWS, COLUMNS)))
    right, _ = np.linalg.qr(rng.standard_normal((COLUMNS, COLUMNS)))
    values = 0.7 ** np.arange(COLUMNS)
    x = ((left * values) @ right.T).ravel()
    best = np.linalg.norm(values[CODEC.rank :]) / np.linalg.norm(values)
    states, errors = [{}], []
    for _ in range(40):
        (result,), _ = reduce_in_lockstep(CODEC, [x], states=states)
        errors.append(distance(result, x) / best)
    assert errors[0] > 1.1
    assert (np.diff(errors) < 1e-12).all()
    assert errors[4] < 1.05
    assert 1 - 1e-12 < errors[-1] < 1 + 1e-9
    assert distance(decode(CODEC, encode(CODEC, x), x.dtype), x) == pytest.approx(errors[1] * best)


def test_is_linear_in_the_workers():
    operands = matrices(4)
    together, _ = reduce_in_lockstep(CODEC, operands)
    summed, _ = reduce_in_lockstep(CODEC, [plain_sum(operands)])
    assert distance(together[0], summed[0]) < 1e-14


@each_dtype
def test_residuals_are_what_the_result_lacks(dtype):
    operands = matrices(3, dtype=dtype)
    residuals, states = [np.zeros_like(x) for x in operands], [{}, {}, {}]
    codec = PowerSGD(rank=4, columns=COLUMNS, min_rate=1, feedback=True)
    sent = np.zeros(ROWS * COLUMNS)
    for step in range(1, 6):
        results, _ = reduce_in_lockstep(codec, operands, residuals=residuals, states=states)
        sent += results[0]
        lacking = step * plain_sum([x.astype(float) for x in operands]) - sent
        left = plain_sum([residual.astype(float) for residual in residuals])
        np.testing.assert_allclose(left, lacking, atol=100 * np.finfo(dtype).eps * np.abs(sent).max())


def test_feedback_gets_everything_across():
    """What waits is bounded, so the mean of what was sent approaches the operand."""
    (x,) = matrices(1)
    codec = PowerSGD(rank=4, columns=COLUMNS, min_rate=1, feedback=True)
    residual, state, sent = np.zeros_like(x), {}, np.zeros_like(x)
    without = distance(encode_feedback(CODEC, x, None, {}), x)
    for _ in range(200):
        sent += encode_feedback(codec, x, residual, state)
    assert distance(sent / 200, x) < without / 5


def test_frames_start_from_where_the_last_ended():
    (x,) = matrices(1)
    state, errors = {}, []
    for _ in range(5):
        errors.append(distance(encode_feedback(CODEC, x, None, state), x))
    assert (np.diff(errors) < 0).all()


def test_a_saved_state_goes_on():
    operands, states = matrices(2), [{}, {}]
    for _ in range(3):
        reduce_in_lockstep(CODEC, operands, states=states)
    saved = [{name: np.array(value) for name, value in state.items()} for state in states]
    expected, _ = reduce_in_lockstep(CODEC, operands, states=states)
    results, _ = reduce_in_lockstep(CODEC, operands, states=saved)
    assert same_bits(results[0], expected[0])
    fresh, _ = reduce_in_lockstep(CODEC, operands)
    assert not same_bits(fresh[0], expected[0])


def test_a_state_of_another_shape_starts_anew():
    operands = matrices(2)
    fresh, _ = reduce_in_lockstep(CODEC, operands)
    other = [{"q": np.ones((2, COLUMNS))} for _ in operands]
    results, _ = reduce_in_lockstep(CODEC, operands, states=other)
    assert same_bits(results[0], fresh[0])


def test_zeros_and_lower_ranks_leave_nothing_stuck():
    """Rows of q that became zero are drawn again: later tensors of full rank are exact."""
    states = [{}, {}]
    zeros = [np.zeros(ROWS * COLUMNS)] * 2
    results, _ = reduce_in_lockstep(CODEC, zeros, states=states)
    assert not results[0].any()
    for rank in (1, 4):
        operands = matrices(2, rank)
        results, _ = reduce_in_lockstep(CODEC, operands, states=states)
        assert distance(results[0], plain_sum(operands)) < 1e-14


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e150])
def test_any_scale(scale):
    """Q is kept at a scale of its own: otherwise the square of the operands' would multiply it with each call."""
    operands, states = [x * scale for x in matrices(2, 4)], [{}, {}]
    for _ in range(30):
        results, _ = reduce_in_lockstep(CODEC, operands, states=states)
        assert distance(results[0] / scale, plain_sum(operands) / scale) < 1e-14


@each_dtype
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, "overflow"])
def test_what_is_not_finite_is_summed_plainly(odd, dtype):
    operands = matrices(3, dtype=dtype)
    residuals, states = [np.zeros_like(x) for x in operands], [{}, {}, {}]
    codec = PowerSGD(rank=4, columns=COLUMNS, min_rate=1, feedback=True)
    reduce_in_lockstep(codec, operands, residuals=residuals, states=states)
    before = [state["q"].copy() for state in states]
    operands[1][777] = np.finfo(dtype).max if odd == "overflow" else odd
    operands[1][778] = np.finfo(dtype).max
    waiting = [x + residual for x, residual in zip(operands, residuals, strict=True)]
    results, sent = reduce_in_lockstep(codec, operands, residuals=residuals, states=states)
    assert sent[-1][0].size == ROWS * COLUMNS
    assert all(same_bits(result, plain_sum(waiting)) for result in results)
    assert not any(residual.any() for residual in residuals)
    assert all(same_bits(state["q"], q) for state, q in zip(states, before, strict=True))
    results, _ = reduce_in_lockstep(codec, matrices(3, dtype=dtype), residuals=residuals, states=states)
    assert np.isfinite(results[0]).all()


@each_dtype
@pytest.mark.parametrize("odd", [np.nan, np.inf, -0.0])
def test_what_is_not_finite_travels_as_it_is(odd, dtype):
    (x,) = matrices(1, dtype=dtype)
    x[5] = odd
    decoded = decode(CODEC, encode(CODEC, x), dtype)
    assert same_bits(decoded, x) == (not np.isfinite(odd))


@pytest.mark.parametrize("count", [0, 1, 200])
def test_small_tensors_are_summed_plainly(count):
    operands = [normal(count, seed=seed) for seed in range(3)]
    results, sent = reduce_in_lockstep(PowerSGD(), operands)
    assert [array.size for array, _ in sent] == [count]
    assert same_bits(results[0], plain_sum(operands))


@pytest.mark.parametrize(
    ("codec", "count", "shape"),
    [
        (PowerSGD(), 1 << 20, (1024, 1024)),
        (PowerSGD(), 1000, (32, 32)),
        (PowerSGD(), 1001, (32, 32)),
        (PowerSGD(), 1025, (33, 32)),
        (PowerSGD(), 1089, (23, 48)),
        (PowerSGD(columns=768), 768 * 3072, (3072, 768)),
        (PowerSGD(columns=768), 768 * 3072 + 1, (3073, 768)),
        (PowerSGD(), 512, (16, 32)),
        (PowerSGD(rank=4, columns=16), 256, None),  # exactly twice smaller
        (PowerSGD(rank=4, columns=16, min_rate=1.9), 256, (16, 16)),
        (PowerSGD(columns=1000), 10, None),
        (PowerSGD(), 0, None),
    ],
)
def test_shape(codec, count, shape):
    assert codec.shape(count) == shape
    if shape:
        elements = codec.rank * sum(shape)
        x = normal(count)
        assert encode(codec, x).payload.size == 4 * elements
        _, sent = reduce_in_lockstep(codec, [x, x])
        assert [(array.size, op) for array, op in sent] == [(codec.rank * n, "sum") for n in shape]


def test_error_is_at_most_that_of_zero():
    for seed in range(5):
        x = normal(5000, seed=seed)
        assert distance(decode(PowerSGD(), encode(PowerSGD(), x), x.dtype), x) <= 1


def test_seeds_start_differently():
    (x,) = matrices(1)
    frames = [encode(PowerSGD(columns=COLUMNS, min_rate=1, seed=seed), x).payload for seed in (0, 1)]
    assert not same_bits(*frames)


@each_dtype
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize(("count", "columns"), [(1, 1), (7, 3), (100, 17), (3000, 1500), (6400, 64), (9999, 1040)])
def test_products(count, columns, rank, dtype):
    """The kernels against NumPy, with last rows of any length."""
    kernels = cpu.load("powersgd")
    rng = np.random.default_rng(count)
    rows = -(-count // columns)
    x, addend = rng.standard_normal((2, count)).astype(dtype)
    q = rng.standard_normal((rank, columns)).astype(dtype)
    p = np.empty((rows, rank), dtype)
    tolerance = {"rtol": 0, "atol": 200 * np.finfo(dtype).eps * np.sqrt(count)}

    def matrix(values):
        return np.pad(values.astype(float), (0, rows * columns - count)).reshape(rows, columns)

    sums = np.empty(4 * kernels.LANES, dtype)
    kernels.project(x, None, q, p, sums)
    np.testing.assert_allclose(p, matrix(x) @ q.T, **tolerance)
    total = x.copy()
    kernels.project(total, addend, q, p, sums)
    assert same_bits(total, x + addend)
    np.testing.assert_allclose(p, matrix(total) @ q.T, **tolerance)
    kernels.project_back(x, p, q)
    np.testing.assert_allclose(q, p.T.astype(float) @ matrix(x), **tolerance)
    q /= max(1, np.abs(q).max())
    product = np.empty(count, dtype)
    kernels.multiply(p, q, product)
    np.testing.assert_allclose(product, (p.astype(float) @ q).ravel()[:count], **tolerance)
    acc = addend.copy()
    kernels.multiply_add(p, q, acc, np.empty(kernels.TILE, dtype))
    assert same_bits(acc, addend + product)


@each_dtype
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_orthonormal(rows, dtype):
    p = np.random.default_rng(0).standard_normal((rows, 5)).astype(dtype)
    p *= np.array([1, 1e-30, 1e30, 1, 1], dtype)
    p[:, 3] = 2 * p[:, 0] - p[:, 1] * 1e30
    q = _orthonormal(p).astype(float)
    eps = float(np.finfo(dtype).eps)
    gram = q.T @ q
    assert set(np.round(np.diag(gram), 5)) <= {0, 1}
    np.testing.assert_allclose(gram, np.diag(np.round(np.diag(gram))), atol=8 * eps)
    # The columns span what they spanned before.
    scaled = p / np.abs(p).max(axis=0).astype(float)
    np.testing.assert_allclose(q @ (q.T @ scaled), scaled, atol=100 * eps)


def test_orthonormal_keeps_zeros_and_no_nan():
    p = np.zeros((10, 3))
    p[:, 1] = 5e-324
    q = _orthonormal(p)
    np.testing.assert_allclose(q, np.outer(np.ones(10), [0, 1, 0]) / np.sqrt(10))


@pytest.mark.parametrize(
    ("error", "parameters"),
    [
        (ValueError, {"rank": 0}),
        (TypeError, {"rank": 1.5}),
        (ValueError, {"columns": 0}),
        (TypeError, {"columns": "8"}),
        (ValueError, {"min_rate": 0.5}),
        (ValueError, {"min_rate": float("nan")}),
        (ValueError, {"min_rate": float("inf")}),
        (TypeError, {"min_rate": True}),
        (ValueError, {"seed": -1}),
        (TypeError, {"feedback": 1}),
    ],
)
def test_parameters_are_checked(error, parameters):
    name, value = next(iter(parameters.items()))
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        PowerSGD(**parameters)


def test_equal_codecs_have_equal_digests():
    assert PowerSGD(min_rate=3) == PowerSGD(min_rate=3.0)
    assert PowerSGD(min_rate=3).digest == PowerSGD(min_rate=3.0).digest
