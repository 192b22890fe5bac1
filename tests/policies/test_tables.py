"""Bounds by table and by iteration."""

import itertools

import numpy as np
import pytest
from helpers import F32, run

from collcomp.codecs import Bounded, Rows
from collcomp.policies import Call, Decay, TableBounds, bound_class, homogenization_index

KINDS = ("stepwise", "linear", "logarithmic")


def call(key, nbytes=1 << 20, dtype=F32, **more):
    return Call("alltoall", nbytes, np.dtype(dtype), None, 4, key, **more)


def test_homogenization_index_counts_rows_that_become_alike():
    rows = np.array([[0.0, 1.0], [0.0, 1.01], [5.0, 0.0], [5.0, 9.0]])
    assert homogenization_index(rows, 0.001) == 0
    assert homogenization_index(rows, 0.1) == 0.25
    assert homogenization_index(rows, 100) == 0.75
    assert homogenization_index(np.repeat(rows, 7, 0), 0.1) == 0.25  # rows that were the same lose nothing
    assert homogenization_index(rows[:0], 0.1) == 0


def test_the_index_grows_with_the_bound():
    rows = np.random.default_rng(0).normal(0, 0.1, (500, 4))
    indices = [homogenization_index(rows, bound) for bound in (1e-4, 1e-2, 0.05, 0.2, 1)]
    assert indices == sorted(indices)
    assert (indices[0], indices[-1]) == (0, 1 - 1 / 500)


@pytest.mark.parametrize(("index", "name"), [(0, "large"), (0.05, "medium"), (0.1, "small"), (1, "small")])
def test_classes(index, name):
    assert bound_class(index) == name


def test_tables_whose_rows_become_alike_get_small_bounds():
    rng = np.random.default_rng(0)
    samples = {"wide": rng.normal(0, 1, (300, 8)), "narrow": rng.normal(0, 0.003, (300, 16))}
    policy = TableBounds.from_samples(samples, large=0.02, medium=0.01, small=0.001)
    assert policy.tables == {"wide": Rows(dim=8, abs=0.02), "narrow": Rows(dim=16, abs=0.001)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "stages"), [(1, 1), (100, 4), (7, 3)])
def test_bounds_never_grow(kind, steps, stages):
    decay = Decay(kind, start=8, steps=steps, stages=stages)
    factors = [decay.factor(step) for step in range(3 * steps)]
    assert factors[0] == 8
    assert all(a >= b for a, b in itertools.pairwise(factors))
    assert set(factors[steps:]) == {1.0}


def test_shapes_of_decay():
    stepwise = [Decay("stepwise", 5, 8, 4).factor(step) for step in range(10)]
    assert stepwise == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    assert Decay("linear", 3, 4).factor(2) == 2
    assert Decay("logarithmic", 3, 99).factor(9) == pytest.approx(2)


def test_plans_follow_key_and_iteration():
    policy = TableBounds({"a": "rows:dim=16,abs=0.01", "b": Bounded(abs=0.002)}, Decay("linear", 3, 2))
    assert policy.plan(call("a")) == policy.plan(call("a"))
    seen = []
    for _ in range(4):
        seen.append((policy.plan(call("a")).codec.abs, policy.plan(call("b")).codec.abs))
        policy.step()
    np.testing.assert_allclose(seen, [(0.03, 0.006), (0.02, 0.004), (0.01, 0.002), (0.01, 0.002)])
    assert policy.plan(call("a")).codec.dim == 16
    assert TableBounds({"a": "rows"}).plan(call("a")).codec == Rows()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (call("other"), "key: 'other'"),
        (call(None), "key: None"),
        (call("a", nbytes=100), "100 bytes"),
        (call("a", dtype="i4"), "dtype: int32"),
    ],
)
def test_native_for_a_reason(given, reason):
    plan = TableBounds({"a": "rows"}).plan(given)
    assert plan.algorithm == "native"
    assert reason in plan.reason


def test_sizes_that_differ_between_ranks_decide_nothing():
    policy = TableBounds({"a": "rows"})
    assert len({policy.plan(call("a", nbytes, uniform=False)) for nbytes in (1, 1 << 30)}) == 1


@pytest.mark.parametrize("codec", ["int8", "bounded", "bounded:rel=0.1"])
def test_tables_need_absolute_bounds(codec):
    with pytest.raises(ValueError, match=r"tables: .*'a' has no absolute bound"):
        TableBounds({"a": codec})


@pytest.mark.parametrize("given", [{"kind": "cosine"}, {"start": 0.5}, {"steps": 0}, {"stages": 0}])
def test_decay_is_checked(given):
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name}: .*{value!r}"):
        Decay(**given)


def test_embeddings_are_exchanged_within_the_bound_of_the_iteration():
    size, dim, bound = 3, 32, 0.001
    policy = TableBounds({"users": Rows(dim=dim, abs=bound)}, Decay("linear", 10, 2), min_nbytes=0)

    def program(comm):
        rows = np.random.default_rng(comm.rank).uniform(-1, 1, (20, dim)).astype(np.float32)
        send = rows[np.random.default_rng(9).integers(0, 20, (size, 300))].reshape(size, -1)
        recv = np.empty_like(send)
        comm.alltoall(send, recv, key="users")
        return send, recv

    for factor in (10, 5.5, 1, 1):
        found = run(size, program, policy=policy)
        for rank, (_, recv) in enumerate(found):
            error = np.abs(recv - [send[rank] for send, _ in found])
            assert 0.8 * factor * bound < error.max() <= factor * bound
            assert not error[rank].any()
        policy.step()
