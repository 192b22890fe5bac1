"""Experiments in the two-tier testbed, small ones: what they measure is told by real runs elsewhere."""

import json

import numpy as np
import pytest

from collcomp.bench import launch, testbed
from collcomp.bench.cli import main
from collcomp.bench.fabric import trial
from collcomp.bench.fabric.jobs import JOBS, job_of
from collcomp.bench.fabric.peers import GatheredStore
from collcomp.bench.fabric.spec import TwoTier
from collcomp.bench.fabric.trial import Timed


@pytest.fixture
def network():
    if reason := testbed.unavailable("leaves=2,spines=2,uplink=200mbit"):
        pytest.skip(reason)
    try:
        launch.find_mpirun()
    except launch.CollcompError as error:
        pytest.skip(str(error))


def rows_of(tmp_path, *arguments):
    path = tmp_path / "rows.json"
    assert main(["fabric", *arguments, "--iterations=1", f"--json={path}"]) == 0
    return json.loads(path.read_text())


def test_planned_order_crosses_less(network, tmp_path):
    rows = {row["how"]: row for row in rows_of(tmp_path, "order", "--ranks=4", "--size=512K")}
    by_rank, planned = rows["ring, rank order"], rows["ring, planned order"]
    assert by_rank["times"] == 1.0
    # Two ranks a leaf: both of a ring's edges from a leaf cross, or one does.
    assert by_rank["crossed"] / planned["crossed"] == pytest.approx(2, abs=0.2)
    assert planned["crossed"] >= 2 * 3 / 4 * (512 << 10)
    assert set(rows) > {"hierarchical, planned groups"}


def test_placed_jobs_have_a_spine_each(network, tmp_path):
    placed, *hashed = rows_of(tmp_path, "jobs", "--ranks=4", "--size=256K", "--draws=2")
    assert placed["busiest"] == pytest.approx(0.5, abs=0.05)
    assert len(placed["seconds"]) == JOBS
    assert [row["how"] for row in hashed] == ["hashed, draw 1", "hashed, draw 2"]
    assert all(row["slower"] == max(row["seconds"]) for row in hashed)


def test_bytes_are_split_as_told(network, tmp_path):
    rows = {row["how"]: row for row in rows_of(tmp_path, "slow-uplink", "--ranks=2", "--size=1M")}
    assert rows["slowed, split as before"]["shares"] == pytest.approx([1 / 2, 1 / 2], abs=0.05)
    assert rows["slowed, split by known rates"]["shares"] == pytest.approx([2 / 3, 1 / 3], abs=0.05)
    whole, slowed = (rows[how]["optimum_seconds"] for how in ("whole, measured", "slowed, measured, later calls"))
    assert slowed == pytest.approx(whole * 2 / 1.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["order", "--size=x"], "--size"),
        (["order", "--size=16"], "--size: 16"),
        (["order", "--iterations=0"], "--iterations: 0"),
        (["order", "--draws=2"], "--draws: 'order'"),
        (["order", "--ranks=1"], "--ranks: 1"),
        (["order", "--link=shm"], "--link: shm"),
        (["order", "--link=fast"], "'fast'"),
        (["order", "--fabric=leaves=2"], "fabric: "),
        (["order", "--json=/nowhere/x.json"], "--json"),
        (["jobs", "--ranks=6"], "--ranks: 6"),
        (["jobs", "--draws=0"], "--draws: 0"),
        (["jobs", "--fabric=leaves=2,spines=1,uplink=1gbit"], "--fabric: 1 spines"),
        (["jobs", "--fabric=leaves=2,spines=2,uplink=1gbit,place=interleaved"], "--fabric: "),
        (["slow-uplink", "--fabric=leaves=1,spines=2,uplink=1gbit"], "--ranks: 4"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, says, capsys):
    assert main(["fabric", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("ranks", [4, 8, 16])
def test_every_job_is_at_both_leaves(ranks):
    fabric = TwoTier(2, (1e6, 1e6))
    for job in range(JOBS):
        members = [rank for rank in range(ranks) if job_of(rank, ranks) == job]
        assert len(members) == ranks // JOBS
        leaves = [fabric.leaf(rank, ranks) for rank in members]
        assert leaves == sorted(leaves)
        assert set(leaves) == {0, 1}


def test_an_iteration_takes_as_long_as_its_slowest_rank():
    timed = Timed(np.array([[1.0, 5.0, 2.0], [2.0, 1.0, 4.0]]), np.zeros((1, 1)))
    assert timed.median == 4.0
    assert timed.median_of([0]) == 2.0


def test_a_store_knows_what_all_have_published():
    class Two:
        def allgather(self, mine):
            return [mine, {"1": "there"}]

    store = GatheredStore()
    store.set("0", "here")
    store.share(Two())
    assert (store.get("0"), store.get("1")) == (b"here", b"there")


def test_wrong_results_are_counted():
    class One:
        rank, size = 0, 1

        def allgather(self, mine):
            return [mine]

        def Allreduce(self, send, recv):
            recv[...] = send
            recv[3] += 1

    action = trial.allreduce(One(), 4096, "native")
    action()
    assert action.wrong() == 1
