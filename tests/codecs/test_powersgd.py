"""PowerSGD: best approximations of low rank, the same on all ranks."""

import copy
import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from checks import (
    DTYPES,
    WORKING,
    check_configuration,
    check_decode_add,
    check_deterministic,
    check_encode_keep,
    check_feedback,
    check_hostile,
    decode,
    encode,
    normal,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lockstep import reduce_in_lockstep

import collcomp
from collcomp.codecs import PowerSGD, as_codec, from_config
from collcomp.codecs.powersgd import _orthonormal
from collcomp.errors import FrameError
from collcomp.feedback import reshard
from collcomp.frame import Frame
from collcomp.kernels import cpu
from collcomp.policies import Call, Fixed

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
        (TypeError, {"shapes": 2.5}),
        (TypeError, {"shapes": (3, 4)}),
        (TypeError, {"shapes": True}),
        (ValueError, {"shapes": "3x/4"}),
        (ValueError, {"shapes": ""}),
        (ValueError, {"columns": 3, "shapes": "3"}),
    ],
)
def test_parameters_are_checked(error, parameters):
    name, value = next(iter(parameters.items()))
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        PowerSGD(**parameters)


def test_equal_codecs_have_equal_digests():
    assert PowerSGD(min_rate=3) == PowerSGD(min_rate=3.0)
    assert PowerSGD(min_rate=3).digest == PowerSGD(min_rate=3.0).digest


# ---------------------------------------------------------------------- several tensors in one message

#: Matrices, vectors, a scalar, nothing, and a matrix that is too small: the indices of those that are compressed.
SHAPES = ((30, 20), (20,), (40, 3, 5), (7,), (), (0, 9), (2, 3), (25, 16), (30, 20))
MATRICES = (0, 2, 7, 8)
SEVERAL = PowerSGD(rank=2, min_rate=1, shapes=SHAPES, feedback=True)
COUNT = sum(map(math.prod, SHAPES))
EDGES = np.cumsum([0, *map(math.prod, SHAPES)]).tolist()
PARTS = [slice(start, stop) for start, stop in itertools.pairwise(EDGES)]


def several(number, rank=None, dtype=np.float64, seed=0):
    """Messages of `SHAPES`, whose matrices are of `rank` together where given."""
    rng = np.random.default_rng(seed)
    messages = rng.standard_normal((number, COUNT))
    for i in MATRICES if rank is not None else ():
        rows = SHAPES[i][0]
        left = rng.standard_normal((rows, rank))
        for x in messages:
            x[PARTS[i]] = (left @ rng.standard_normal((rank, math.prod(SHAPES[i]) // rows))).ravel()
    return list(messages.astype(dtype))


def alone(i):
    """The codec of tensor `i` by itself."""
    return PowerSGD(rank=2, min_rate=1, columns=math.prod(SHAPES[i][1:]), feedback=True)


def fresh(operands):
    """Residuals and states at first."""
    return {"residuals": [np.zeros_like(x) for x in operands], "states": [{} for _ in operands]}


@each_dtype
@pytest.mark.parametrize("size", [1, 3])
def test_several_matrices_of_low_rank_are_exact(size, dtype):
    operands = several(size, 2, dtype)
    results, _ = reduce_in_lockstep(SEVERAL, operands)
    expected = plain_sum([x.astype(float) for x in operands])
    for i, part in enumerate(PARTS):
        if i in MATRICES:
            assert distance(results[0][part], expected[part]) < 8 * np.finfo(dtype).eps
        else:
            assert same_bits(results[0][part], plain_sum([x[part] for x in operands]))


@each_dtype
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_several_tensors_are_as_each_by_itself(in_place, feedback, dtype):
    """Results, residuals and states, call after call, in two rounds."""
    codec = PowerSGD(rank=2, min_rate=1, shapes=SHAPES, feedback=feedback)
    size = 3
    states, singles = [{} for _ in range(size)], {i: [{} for _ in range(size)] for i in MATRICES}
    residuals = np.zeros((size, COUNT), dtype) if feedback else None
    apart = np.zeros((size, COUNT), dtype)
    for step in range(3):
        operands = several(size, dtype=dtype, seed=step)
        kept = None if residuals is None else list(residuals)
        results, sent = reduce_in_lockstep(codec, operands, residuals=kept, states=states, in_place=in_place)
        assert all(same_bits(result, results[0]) for result in results)
        factors = [sum(2 * side for side in sides) for sides in [(30, 40, 25, 30), (20, 15, 16, 20)]]
        others = sum(math.prod(shape) for i, shape in enumerate(SHAPES) if i not in MATRICES)
        assert [(array.size, op) for array, op in sent] == [(factors[0] + others, "sum"), (factors[1], "sum")]
        for i, part in enumerate(PARTS):
            own = [x[part] for x in operands]
            if i not in MATRICES:
                assert same_bits(results[0][part], plain_sum(own))
                continue
            kept = list(apart[:, part]) if feedback else None
            expected, _ = reduce_in_lockstep(alone(i), own, residuals=kept, states=singles[i])
            assert same_bits(results[0][part], expected[0])
            for state, single in zip(states, singles[i], strict=True):
                assert same_bits(state[f"q{i}"], single["q"])
        assert states[0].keys() == {f"q{i}" for i in MATRICES}
        assert residuals is None or same_bits(residuals, apart)


@each_dtype
@pytest.mark.parametrize("odd", [np.nan, -np.inf, "p overflows", "q overflows"])
@pytest.mark.parametrize("feedback", [False, True])
def test_only_the_tensor_concerned_is_summed_plainly(feedback, odd, dtype):
    operands = several(3, dtype=dtype)
    memory = {"residuals": [np.zeros_like(x) for x in operands] if feedback else None, "states": [{}, {}, {}]}
    reduce_in_lockstep(SEVERAL, several(3, dtype=dtype, seed=1), **memory)
    hit, part = 7, PARTS[7]
    # One call on clean operands, from the same state, says what all other tensors come to.
    copies = copy.deepcopy(memory)
    expected, _ = reduce_in_lockstep(SEVERAL, operands, **copies)
    bad = operands[1][part].reshape(SHAPES[hit])
    largest = np.finfo(dtype).max
    if odd == "p overflows":
        bad[3] = np.where(memory["states"][0]["q7"][0] < 0, -largest, largest)
    elif odd == "q overflows":
        bad[:, 4] = largest / 2
    else:
        bad[3, 4] = odd
    held = memory["residuals"] or [np.zeros_like(x) for x in operands]
    waiting = [x + residual for x, residual in zip(operands, held, strict=True)]
    before = memory["states"][0]["q7"].copy()
    with np.errstate(all="ignore"):
        results, sent = reduce_in_lockstep(SEVERAL, operands, **memory)
    assert all(same_bits(result, results[0]) for result in results)
    assert same_bits(results[0][part], plain_sum([x[part] for x in waiting]))
    whole = math.prod(SHAPES[hit])
    sizes = [array.size for array, _ in sent]
    assert sizes[1:] == ([2 * 71, whole] if odd == "q overflows" else [2 * 55 + whole])
    assert same_bits(memory["states"][0]["q7"], before)
    for i, other in enumerate(PARTS):
        if i != hit:
            assert same_bits(results[0][other], expected[0][other])
            for residual, clean in zip(memory["residuals"] or [], copies["residuals"] or [], strict=True):
                assert same_bits(residual[other], clean[other])
    assert not any(residual[part].any() for residual in memory["residuals"] or [])
    results, _ = reduce_in_lockstep(SEVERAL, several(3, dtype=dtype), **memory)
    assert np.isfinite(results[0]).all()


@each_dtype
def test_all_tensors_at_once_are_not_finite(dtype):
    operands, waiting = several(2, dtype=dtype), np.full(COUNT, np.nan, dtype)
    operands[0][:] = waiting
    results, sent = reduce_in_lockstep(SEVERAL, operands, **fresh(operands))
    assert np.isnan(results[1]).all()
    assert len(sent) == 2
    frame = encode(SEVERAL, waiting)
    assert frame.payload.size == waiting.nbytes + len(MATRICES)
    assert np.isnan(decode(SEVERAL, frame, dtype)).all()


@each_dtype
def test_residuals_of_several_tensors_are_what_the_results_lack(dtype):
    memory, sent, given = fresh(several(3, dtype=dtype)), np.zeros(COUNT), np.zeros(COUNT)
    for step in range(6):
        operands = several(3, dtype=dtype, seed=step)
        results, _ = reduce_in_lockstep(SEVERAL, operands, **memory)
        sent += results[0]
        given += plain_sum([x.astype(float) for x in operands])
    left = plain_sum([residual.astype(float) for residual in memory["residuals"]])
    np.testing.assert_allclose(sent, given - left, atol=100 * np.finfo(dtype).eps * np.abs(given).max())
    plain = [i for i in range(len(SHAPES)) if i not in MATRICES]
    assert not any(left[PARTS[i]].any() for i in plain)
    assert all(left[PARTS[i]].any() for i in MATRICES)


def test_several_constant_matrices_approach_the_best_approximation():
    rng = np.random.default_rng(3)
    shapes, x, best = ((60, 40), (5,), (50, 70)), [], []
    for rows, *columns in shapes:
        if not columns:
            x.append(np.ones(rows))
            continue
        n = min(rows, *columns)
        values = 0.7 ** np.arange(n)
        left, _ = np.linalg.qr(rng.standard_normal((rows, n)))
        right, _ = np.linalg.qr(rng.standard_normal((*columns, n)))
        x.append(((left * values) @ right.T).ravel())
        best.append(np.linalg.norm(values[4:]) / np.linalg.norm(values))
    codec, states, errors = PowerSGD(shapes=shapes, min_rate=1), [{}], []
    for _ in range(40):
        (result,), _ = reduce_in_lockstep(codec, [np.concatenate(x)], states=states)
        errors.append([distance(result[:2400], x[0]) / best[0], distance(result[2405:], x[2]) / best[1]])
    assert (np.diff(errors, axis=0) < 1e-12).all()
    assert (np.array(errors[0]) > 1.05).all()
    np.testing.assert_allclose(errors[-1], 1, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frames_of_several_tensors(dtype):
    x = (several(1, dtype=np.float64)[0] * 100).astype(dtype)
    codec = PowerSGD(rank=2, min_rate=1, shapes=SHAPES)
    check_deterministic(codec, x)
    check_decode_add(codec, x)
    check_encode_keep(codec, x)
    decoded = decode(codec, encode(codec, x), dtype)
    for i, part in enumerate(PARTS):
        if i in MATRICES:
            assert 0 < distance(decoded[part], x[part]) < 1
        else:
            assert same_bits(decoded[part], x[part])
    x[PARTS[2]][5] = np.nan
    again = decode(codec, encode(codec, x), dtype)
    assert same_bits(again[PARTS[2]], x[PARTS[2]])
    assert same_bits(again[PARTS[7]], decoded[PARTS[7]])
    check_decode_add(codec, x)
    check_encode_keep(codec, x)


@each_dtype
def test_frames_of_several_tensors_with_feedback(dtype):
    check_feedback(PowerSGD(rank=2, min_rate=1, shapes="20/7/3x2"), normal(33, dtype))
    (x,) = several(1, dtype=dtype)
    residual, state, sent = np.zeros_like(x), {}, np.zeros_like(x)
    for step in range(1, 4):
        sent += encode_feedback(SEVERAL, x, residual, state)
        np.testing.assert_allclose(sent, step * x - residual, atol=100 * np.finfo(dtype).eps)
    x[PARTS[0]][0] = np.nan
    encode_feedback(SEVERAL, x, residual, state)
    assert not residual[PARTS[0]].any()
    assert residual[PARTS[2]].any()


@pytest.mark.parametrize(("shapes", "count"), [(((5,), (3,), ()), 9), (((0, 7), (0,)), 0), (((0, 4), (3, 2)), 6)])
def test_messages_without_matrices_take_one_plain_round(shapes, count):
    codec = PowerSGD(shapes=shapes)
    operands = [normal(count, seed=seed) for seed in range(3)]
    results, sent = reduce_in_lockstep(codec, operands)
    assert [array.size for array, _ in sent] == [count]
    assert all(same_bits(result, plain_sum(operands)) for result in results)
    assert same_bits(decode(codec, encode(codec, operands[0]), np.float32), operands[0])


def test_a_large_message_is_not_copied():
    shapes = ((512, 512), (512,)) * 4
    x = normal(sum(map(math.prod, shapes)))
    codec, memory = PowerSGD(shapes=shapes, feedback=True), {"residual": np.zeros_like(x), "state": {}}
    for _ in range(2):  # the first time, kernels are compiled
        tracemalloc.start()
        for _ in codec.reduction(x, x, 1, shared=0, stream=0, **memory):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < x.nbytes / 8


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("powersgd:shapes=256x768/768/2x3x4", ((256, 768), (768,), (2, 3, 4))),
        ("powersgd:shapes=768", ((768,),)),
        ("powersgd:rank=2,feedback,shapes=0x3/1", ((0, 3), (1,))),
        ("powersgd", ()),
    ],
)
def test_shapes_in_specs(spec, shapes):
    codec = as_codec(spec)
    assert codec.shapes == shapes
    assert codec.spec == spec
    check_configuration(codec)
    for same in (shapes, [list(map(np.int64, shape)) for shape in shapes]):
        config = {**codec.get_config(), "shapes": same}
        assert from_config(config) == codec
        assert from_config(config).digest == codec.digest
        assert hash(from_config(config)) == hash(codec)
    assert from_config(json.loads(json.dumps(codec.get_config()))) == codec


def test_other_shapes_are_other_codecs():
    codecs = [PowerSGD(shapes=shapes) for shapes in ("6x4", "4x6", "24", "6x4/0")]
    assert len({codec.digest for codec in codecs}) == len(set(codecs)) == 4
    assert PowerSGD(shapes=((),)) == PowerSGD(shapes="1")


@pytest.mark.parametrize("count", [0, COUNT - 1, COUNT + 1])
def test_counts_are_those_of_the_shapes(count):
    x, out = np.zeros(count), np.zeros(count)
    match = f"count: {count} elements.*{COUNT}"
    buffer = np.empty(SEVERAL.max_encoded_nbytes(count + COUNT, x.dtype), np.uint8)
    with pytest.raises(ValueError, match=match):
        SEVERAL.encode(x, buffer)
    with pytest.raises(ValueError, match=match):
        SEVERAL.encode_feedback(x, x.copy(), buffer)
    with pytest.raises(ValueError, match=match):
        next(SEVERAL.reduction(x, out, 2, shared=0, stream=0, residual=None, state={}))
    frame = Frame(SEVERAL.number, x.dtype, SEVERAL.digest, 0, count, 2, count, np.zeros(4, np.uint8))
    for write in (SEVERAL.decode, SEVERAL.decode_add):
        with pytest.raises(FrameError, match=match):
            write(frame, out)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_hostile_frames_of_several_tensors(data):
    codec = PowerSGD(rank=2, min_rate=1, shapes=SHAPES)
    dtype = data.draw(st.sampled_from(WORKING))
    (x,) = several(1, dtype=dtype)
    if data.draw(st.booleans()):
        x[data.draw(st.integers(0, COUNT - 1))] = np.nan
    frame = encode(codec, x)
    payload = frame.payload.copy()
    for _ in range(data.draw(st.integers(0, 6))):
        # The marks of the matrices are the last bytes.
        at = data.draw(st.one_of(st.integers(0, payload.size - 1), st.integers(payload.size - 4, payload.size - 1)))
        payload[at] = data.draw(st.sampled_from([0, 1, 2, 255]))
    payload = payload[: data.draw(st.one_of(st.just(payload.size), st.integers(0, payload.size)))]
    extra = data.draw(st.sampled_from([2, 2, 2, 0, 1, 2**63]))
    check_hostile(codec, Frame(codec.number, dtype, codec.digest, 0, COUNT, extra, COUNT, payload), dtype)


def test_the_payload_of_several_tensors():
    """Piece by piece, p before q, each row by row; a byte for each matrix at the end."""
    codec = PowerSGD(rank=1, shapes="1/4x6/2/5x5")
    p, q, elements, matrix = np.arange(4.0), np.arange(6.0) + 1, np.array([0.5, 7, 8]), np.arange(25.0)
    payload = np.concatenate([elements[:1], p, q, elements[1:], matrix]).view(np.uint8)
    payload = np.concatenate([payload, np.array([1, 0], np.uint8)])
    frame = Frame(codec.number, p.dtype, codec.digest, 0, 52, 1, 52, payload)
    expected = np.concatenate([elements[:1], np.outer(p, q).ravel(), elements[1:], matrix])
    assert same_bits(decode(codec, frame, p.dtype), expected)
    expected[-1] = np.nan
    frame = encode(codec, expected)
    assert (frame.extra, frame.payload.size) == (1, payload.size)
    assert frame.payload[-2:].tolist() == [1, 0]
    assert same_bits(frame.payload[-2 - matrix.nbytes : -2], expected[-25:].view(np.uint8))


@settings(max_examples=50, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=5))
def test_any_shapes(shapes):
    codec = PowerSGD(rank=1, min_rate=1, shapes=shapes)
    check_configuration(codec)
    edges = np.cumsum([0, *map(math.prod, shapes)]).tolist()
    operands = [normal(edges[-1], seed=seed) for seed in range(2)]
    results, _ = reduce_in_lockstep(codec, operands)
    decoded = decode(codec, encode(codec, operands[0]), np.float32)
    for shape, (start, stop) in zip(shapes, itertools.pairwise(edges), strict=True):
        own = [x[start:stop] for x in operands]
        if len(shape) < 2 or start == stop:
            assert same_bits(results[1][start:stop], plain_sum(own))
            assert same_bits(decoded[start:stop], own[0])
            continue
        single = PowerSGD(rank=1, min_rate=1, columns=math.prod(shape[1:]))
        expected, _ = reduce_in_lockstep(single, own)
        assert same_bits(results[1][start:stop], expected[1])
        assert same_bits(decoded[start:stop], decode(single, encode(single, own[0]), np.float32))


def test_marks_of_matrices_are_checked():
    (x,) = several(1)
    frame = encode(SEVERAL, x)
    assert frame.payload[-4:].tolist() == [1, 1, 1, 1]
    for mark in (0, 2):
        payload = frame.payload.copy()
        payload[-2] = mark
        wrong = Frame(frame.codec, frame.dtype, frame.config, 0, COUNT, frame.extra, COUNT, payload)
        out = np.zeros(COUNT)
        with pytest.raises(FrameError, match="frame: "):
            SEVERAL.decode(wrong, out)
        assert not out.any()


# ---------------------------------------------------------------------- by ranks


def power_step(operands, residuals, q):
    """One step in float64, by NumPy: the sum, the residuals and the next q."""
    waiting = [x + residual for x, residual in zip(operands, residuals, strict=True)]
    p, _ = np.linalg.qr(sum(waiting) @ q.T)
    owns = [p.T @ x for x in waiting]
    q = sum(owns)
    # NumPy's basis differs from Gram and Schmidt's in signs, which change neither the product nor the next step.
    return p @ q, [x - p @ own for x, own in zip(waiting, owns, strict=True)], q


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)], ids=str)
def test_ranks_sum_several_tensors(dtype):
    steps, size = 4, 3
    given = [[x.astype(dtype) for x in several(size, seed=step)] for step in range(steps)]

    def program(comm):
        results = []
        for step in range(steps):
            x = given[step][comm.rank]
            comm.allreduce(x, recv := np.empty_like(x), codec=SEVERAL, key="bucket")
            results.append(recv)
        saved = comm.residuals.state_dict()
        return results, saved, comm.records[-1].algorithm

    found = collcomp.local.run(size, program)
    for results, _, algorithm in found:
        assert algorithm == "summed"
        assert all(same_bits(x, y) for x, y in zip(results, found[0][0], strict=True))
    unit = np.finfo(np.float32 if dtype.itemsize == 2 else dtype).eps
    rounding = np.finfo(dtype).eps
    for i, part in enumerate(PARTS):
        if i not in MATRICES:
            for step in range(steps):
                exact = plain_sum([x[part].astype(float) for x in given[step]])
                np.testing.assert_allclose(found[0][0][step][part], exact, atol=8 * rounding * size)
            continue
        shape = SHAPES[i][0], -1
        q = alone(i)._start(math.prod(SHAPES[i][1:]), np.dtype(np.float64))
        residuals = [0, 0, 0]
        for step in range(steps):
            operands = [x[part].astype(float).reshape(shape) for x in given[step]]
            expected, residuals, q = power_step(operands, residuals, q)
            result = found[0][0][step][part].astype(float).reshape(shape)
            error = np.linalg.norm(result - expected)
            assert error < (1000 * unit + rounding) * np.linalg.norm(expected)
    states = [saved for _, saved, _ in found]
    merged = reshard(states)
    (state,) = merged["states"]["bucket"].values()
    assert state.keys() == {f"q{i}" for i in MATRICES}
    total = sum(saved["residuals"]["bucket"] for saved in states)
    np.testing.assert_allclose(merged["residuals"]["bucket"] * size, total, rtol=1e-5, atol=1e-5)

    def goes_on(comm):
        comm.residuals.load_state_dict(states[comm.rank])
        x = given[0][comm.rank]
        comm.allreduce(x, recv := np.empty_like(x), codec=SEVERAL, key="bucket")
        return recv

    def uninterrupted(comm):
        program(comm)
        x = given[0][comm.rank]
        comm.allreduce(x, recv := np.empty_like(x), codec=SEVERAL, key="bucket")
        return recv

    assert same_bits(collcomp.local.run(size, goes_on)[0], collcomp.local.run(size, uninterrupted)[0])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda comm, x: comm.allreduce(x[1:], x[1:].copy(), codec=SEVERAL, key="w"), f"count: {COUNT - 1} .*{COUNT}"),
        (lambda comm, x: comm.allreduce(x, x.copy(), codec=SEVERAL, key="w", algorithm="direct"), "'direct' cuts"),
        (lambda comm, x: comm.reduce(x, x.copy(), codec=SEVERAL, key="w"), "one piece, reduce cuts"),
        (lambda comm, x: comm.bcast(x, codec=SEVERAL), "one piece, bcast cuts"),
        (lambda comm, x: comm.allgather(x[1:], np.zeros(2 * COUNT - 2), codec=SEVERAL), f"{COUNT - 1} .*{COUNT}"),
    ],
)
def test_what_is_not_of_the_shapes_is_refused_on_all_ranks(call, match):
    def program(comm):
        with pytest.raises(ValueError, match=match):
            call(comm, np.zeros(COUNT))
        x = np.ones(COUNT)
        comm.allreduce(x, recv := np.empty_like(x), codec=SEVERAL, key="w")
        comm.allgather(x, gathered := np.empty(2 * COUNT), codec=SEVERAL)
        return recv, gathered

    for recv, gathered in collcomp.local.run(2, program):
        np.testing.assert_allclose(recv, 2, rtol=1e-12)
        np.testing.assert_allclose(gathered, 1, rtol=1e-12)


def test_a_default_codec_leaves_other_counts_alone():
    policy = Fixed(SEVERAL, min_nbytes=0)
    for count, algorithm in ((COUNT, "summed"), (COUNT + 1, "native")):
        assert policy.plan(Call("allreduce", 8 * count, np.dtype(np.float64), "sum", 2, "w")).algorithm == algorithm
    assert policy.plan(Call("bcast", 8 * COUNT, np.dtype(np.float64), None, 2)).algorithm == "native"
