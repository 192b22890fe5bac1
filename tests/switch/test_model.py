"""Operations through switches whose links lose, repeat and reorder packets."""

import ml_dtypes
import numpy as np
import pytest
from exact_sums import exact_sum
from hypothesis import given, settings
from hypothesis import strategies as st

from collcomp.errors import DeadlineError, FrameError, TransportError
from collcomp.switch.model import SwitchModel
from collcomp.switch.network import Link

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]
INTEGERS = [np.uint8, np.uint16, np.uint32, np.uint64]
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-24, 65504, 3e38, -3e38, 1.0]


def floats(rng, kind, size, dtype):
    if kind == "normal":
        return rng.standard_normal(size).astype(dtype)
    if kind == "bits":
        bits = np.dtype(dtype).itemsize
        return rng.integers(0, 256, (size, bits), np.uint8).view(dtype).reshape(size)
    if kind == "finite bits":
        x = floats(rng, "bits", size, dtype)
        return np.where(np.isfinite(x.astype(np.float32)), x, x.dtype.type(-0.0))
    with np.errstate(over="ignore"):
        return rng.choice(SPECIAL, size).astype(dtype)


def random_tree(rng, ranks):
    """Nested lists of ranks in random order."""
    ranks = list(rng.permutation(ranks))
    if len(ranks) < 2 or rng.random() < 0.3:
        return [int(rank) for rank in ranks]
    cuts = np.sort(rng.choice(np.arange(1, len(ranks)), rng.integers(1, min(3, len(ranks) - 1) + 1), replace=False))
    parts = [part.tolist() for part in np.split(np.array(ranks), cuts)]
    return [part[0] if len(part) == 1 and rng.random() < 0.5 else random_tree(rng, part) for part in parts]


def same_bits(x, y):
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def assert_all(outcome, expected):
    for result in outcome.results:
        assert isinstance(result, np.ndarray), result
        assert same_bits(result, expected)


links = st.builds(
    Link,
    rate=st.sampled_from([np.inf, 1e6, 25e6]),
    latency=st.sampled_from([0.0, 1e-4, 1e-2]),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    duplication=st.sampled_from([0.0, 0.3]),
    reordering=st.sampled_from([0.0, 0.3]),
    delay=st.sampled_from([1e-3, 0.1]),
)


@settings(max_examples=100)
@given(
    st.integers(1, 12),
    st.sampled_from([0, 1, 7, 63, 64, 301]),
    st.sampled_from(FLOATS),
    st.lists(st.sampled_from(["normal", "bits", "finite bits", "special"]), min_size=1, max_size=3),
    st.booleans(),
    st.tuples(links, links, links),
    st.sampled_from([88, 128, 256]),
    st.integers(1, 8),
    st.integers(0, 2**32),
)
def test_sums_are_correctly_rounded(n, size, dtype, kinds, with_tree, lines, payload_nbytes, window, seed):
    rng = np.random.default_rng(seed)
    up, down, trunk = lines
    model = SwitchModel(
        n, tree=random_tree(rng, range(n)) if with_tree else None, up=up, down=down, trunk=trunk,
        window=window, payload_nbytes=payload_nbytes, deadline=1e4, seed=seed,
    )  # fmt: skip
    for kind in kinds:
        operands = [floats(rng, kind, size, dtype) for _ in range(n)]
        assert_all(model.allreduce(operands), exact_sum(operands))


_calls = st.tuples(
    st.sampled_from([*FLOATS, *INTEGERS, np.int32]),
    st.sampled_from(["sum", "max", "or"]),
    st.sampled_from([0, 1, 5, 200]),
)


@settings(max_examples=40)
@given(st.integers(1, 8), st.lists(_calls, min_size=2, max_size=5), st.booleans(), links, st.integers(0, 2**32))
def test_operations_of_all_kinds_follow_each_other(n, calls, with_tree, link, seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, range(n)) if with_tree else None
    model = SwitchModel(
        n, tree=tree, up=link, down=link, trunk=link, window=3, payload_nbytes=128, deadline=1e4, seed=seed
    )
    for dtype, op, size in calls:
        if dtype in FLOATS:
            operands = [floats(rng, "normal", size, dtype) for _ in range(n)]
            expected = exact_sum(operands)
        else:
            info = np.iinfo(dtype)
            operands = [rng.integers(info.min, info.max, size, dtype, endpoint=True) for _ in range(n)]
            if dtype == np.int32 or (op == "or" and dtype != np.uint8):
                op = "sum"
            expected = {"sum": np.add, "max": np.maximum, "or": np.bitwise_or}[op].reduce(operands, dtype=dtype)
        if dtype in FLOATS:
            op = "sum"
        assert_all(model.allreduce(operands, op), expected)


def test_the_same_seed_gives_the_same_times_and_counters():
    def run(seed):
        link = Link(25e6, loss=0.05, duplication=0.05, reordering=0.1)
        model = SwitchModel(5, tree=[[0, 1], [2, [3, 4]]], up=link, down=link, trunk=link, window=8, seed=seed)
        rng = np.random.default_rng(0)
        outcomes = [model.allreduce([rng.standard_normal(5000).astype("f") for _ in range(5)]) for _ in range(2)]
        return [(o.seconds, o.sent, o.resent, o.packets, o.lost, o.nbytes, o.counters) for o in outcomes]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_time_is_what_links_and_switch_take():
    # One worker, one packet: 48 + 42 + 400 bytes each way, 5 ms of latency, 1 ms at each of four places.
    link = Link(rate=1e5, latency=5e-3)
    model = SwitchModel(1, up=link, down=link, switch_s=1e-3, worker_s=1e-3)
    outcome = model.allreduce([np.ones(100, "f")])
    assert outcome.seconds == pytest.approx(2 * (490e-5 + 5e-3 + 2e-3))
    assert (outcome.packets, outcome.nbytes, outcome.sent, outcome.resent) == (2, 2 * 490, 1, 0)


def test_bandwidth_is_used_whole_once_in_each_direction():
    link = Link(25e6)
    model = SwitchModel(4, up=link, down=link, payload_nbytes=1024)
    outcome = model.allreduce([np.ones(1 << 18, "f")] * 4)
    least = (1 << 10) * (1024 + 48 + 42) / 25e6
    assert least < outcome.seconds < 1.01 * least
    assert outcome.resent == 0


def test_loss_costs_packets_that_are_sent_again():
    operands = [np.full(1 << 14, rank, "f") for rank in range(4)]

    def run(loss):
        link = Link(25e6, loss=loss)
        return SwitchModel(4, up=link, down=link, payload_nbytes=1024, seed=3).allreduce(operands)

    clean, lossy = run(0), run(0.1)
    assert (clean.lost, clean.resent) == (0, 0)
    assert lossy.lost > 20
    # Each packet that is lost on its way up, and each sum, has its worker send again.
    assert lossy.resent >= lossy.lost / 2
    assert lossy.seconds > clean.seconds


def test_first_timer_that_is_too_short_grows():
    model = SwitchModel(2, up=Link(latency=0.1), down=Link(latency=0.1), window=16, payload_nbytes=64)
    outcome = model.allreduce([np.ones(16 * 1600, "f")] * 2)
    # The first windows are sent again; then it is known how long a round trip takes.
    assert outcome.sent - outcome.resent == 2 * 1600
    assert outcome.resent < 300


def test_repeats_do_not_grow_with_the_levels_of_a_tree():
    rng = np.random.default_rng(0)
    operands = [floats(rng, "finite bits", 300, np.float32) for _ in range(8)]
    model = SwitchModel(
        8, tree=[[7, 6], [[[5], 4], [[0], 3, [2]]], 1], up=Link(25e6, 0.01), down=Link(25e6, loss=0.3),
        trunk=Link(1e6, loss=0.05), window=4, payload_nbytes=88, deadline=20.0,
    )  # fmt: skip
    assert_all(model.allreduce(operands), exact_sum(operands))


def test_late_worker_is_waited_for():
    outcome = SwitchModel(3, tree=[[0, 1], 2]).allreduce([np.ones(9, "f")] * 3, late={1: 2.5})
    assert 2.5 < outcome.seconds < 2.6
    assert_all(outcome, np.full(9, 3, "f"))


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [[0, 1, 2], [3, 4, 5]],
        [[0, 1], [2, [3, 4], 5]],
        [[[0, 1], [2]], [[3, 4], 5]],
        [[4], [0, 1, 2, 3, 5]],
    ],
)
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_worker_that_dies_is_named_by_all_others(tree, loss):
    link = Link(25e6, loss=loss)
    operands = [np.ones(1 << 14, "f")] * 6
    for dead in range(6):
        model = SwitchModel(6, tree=tree, up=link, down=link, trunk=link, window=8, deadline=5.0, seed=dead)
        outcome = model.allreduce(operands, deaths={dead: 1e-3})
        assert outcome.results[dead] is None
        errors = outcome.results[:dead] + outcome.results[dead + 1 :]
        assert any(isinstance(error, DeadlineError) for error in errors)
        for error in errors:
            assert isinstance(error, (DeadlineError, FrameError)), error
            assert str(error).endswith(f"waits for rank {dead}")
        assert outcome.seconds < 7.0


def test_the_dead_stay_dead_and_all_of_them_are_named():
    model = SwitchModel(5, deadline=1.0)
    model.allreduce([np.ones(5, "f")] * 5, deaths={1: 0.0, 3: 0.0, 4: 0.0})
    outcome = model.allreduce([np.ones(5, "f")] * 5)
    assert [result is None for result in outcome.results] == [False, True, False, True, True]
    assert str(outcome.results[0]).endswith("waits for rank 1, 3, 4")


def test_a_leaf_names_those_below_it():
    model = SwitchModel(5, tree=[[0, 1], [2, 3, 4]], deadline=1.0)
    outcome = model.allreduce([np.ones(5, "f")] * 5, deaths={1: 0.0, 3: 0.0, 4: 0.0})
    for rank in (0, 2):
        assert str(outcome.results[rank]).endswith(("waits for rank 1", "waits for rank 3, 4"))


@pytest.mark.parametrize("tree", [None, [[0, 1], [2, 3]]])
@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_operations_after_one_that_failed_give_right_sums(tree, loss):
    link = Link(25e6, loss=loss, reordering=0.1)
    model = SwitchModel(4, tree=tree, up=link, down=link, trunk=link, window=4, payload_nbytes=72, deadline=2.0, seed=1)
    failed = model.allreduce([np.full(99, 64.0, "f")] * 4, late={3: 30.0})
    assert all(isinstance(result, (DeadlineError, FrameError)) for result in failed.results)
    for size in (1, 99, 99, 500):
        assert_all(model.allreduce([np.full(size, 2.0**rank, "f") for rank in range(4)]), np.full(size, 15, "f"))


@pytest.mark.parametrize("tree", [None, [[0, 1], [2, 3]]])
def test_calls_that_differ_fail_everywhere(tree):
    model = SwitchModel(4, tree=tree, deadline=5.0)
    outcome = model.allreduce([np.ones(9, "f")] * 3 + [np.ones(9, np.int32)])
    for result in outcome.results:
        assert isinstance(result, FrameError)
        assert "differs" in str(result)
    assert outcome.seconds < 1.0
    assert_all(model.allreduce([np.ones(9, "f")] * 4), np.full(9, 4, "f"))


def test_jobs_share_a_pool_and_one_too_many_is_refused():
    model = SwitchModel([3, 2, 2], slots=16, window=8, up=Link(loss=0.1), down=Link(loss=0.1))
    operands = [np.full(5000, 2.0**rank, "f") for rank in range(7)]
    for _ in range(2):
        outcome = model.allreduce(operands)
        for rank in range(5):
            assert (outcome.results[rank] == (7 if rank < 3 else 24)).all()
        for rank in (5, 6):
            assert isinstance(outcome.results[rank], TransportError)
            assert (
                str(outcome.results[rank])
                == "no room for another job: the switch has 2 jobs of 3, and 0 free slots of 16"
            )


def test_many_workers():
    model = SwitchModel(600, tree=[list(range(low, low + 100)) for low in range(0, 600, 100)], payload_nbytes=256)
    operands = [np.full(100, rank, "f") for rank in range(600)]
    assert_all(model.allreduce(operands), np.full(100, 600 * 599 / 2, "f"))


@pytest.mark.parametrize("tree", [[0, 1], [[0, 1], [1, 2]], [[0], [1, 2, 3]]])
def test_tree_that_is_none_of_these_workers(tree):
    with pytest.raises(ValueError, match="tree"):
        SwitchModel(3, tree=tree)


def test_what_switches_do_not_combine():
    model = SwitchModel(2)
    with pytest.raises(TypeError, match="float64"):
        model.allreduce([np.ones(1)] * 2)
    with pytest.raises(TypeError, match="max"):
        model.allreduce([np.ones(1, "f")] * 2, "max")
    with pytest.raises(ValueError, match="operands"):
        model.allreduce([np.ones(1, "f")])
