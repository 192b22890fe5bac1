"""The benchmarks of planning, small ones."""

import json
import sys

import pytest

from collcomp.bench.cli import main
from collcomp.bench.planning import c4p, reference, scale
from collcomp.bench.planning.ring_jobs import bus_bandwidths
from collcomp.errors import CollcompError
from collcomp.planner.flows.placing import LeastLoaded
from collcomp.planner.flows.table import Flow, FlowTable


def find(rows, what, queue_pairs=8):
    (row,) = [row for row in rows if row.what == what and row.queue_pairs == queue_pairs]
    return row


@pytest.fixture(scope="module")
def rows():
    return list(c4p.rows(1))


def test_placed_flows_reach_what_nvlink_lets_through(rows):
    for queue_pairs in (1, 8, 64):
        assert find(rows, "planned", queue_pairs).least == pytest.approx(362)
        assert find(rows, "hashed", queue_pairs).most < 362


def test_after_a_failure_the_best_shares_cost_little_or_nothing(rows):
    down = "uplink down: "
    again, equal = find(rows, down + "hashed again"), find(rows, down + "equal shares, same ports")
    assert again.mean <= 320 + 1e-6
    assert equal.least == pytest.approx(320)  # 64 queue pairs on seven uplinks: ten on one
    assert find(rows, down + "best shares, same ports, paced").least == pytest.approx(350)  # 400 of 7 / 8
    for paced in ("", ", paced"):
        assert find(rows, f"{down}best shares, both planes{paced}").least == pytest.approx(362)
    assert again.bound == pytest.approx(375)


def test_a_slow_edge_holds_up_its_ring():
    table = FlowTable(c4p.setting())
    ends = [tuple(f"host{h}.nic0.port{p}" for p in range(2)) for h in range(3)]
    table.add([Flow("a", ends[i - 1], ends[i], 1e9) for i in range(3)], LeastLoaded(16))
    assert bus_bandwidths(table, 362 * c4p.GBIT)["a"] == pytest.approx(362 * c4p.GBIT)
    table.set_bandwidth("host1.nic0.port0", "plane0.leaf1", 50 * c4p.GBIT)
    assert bus_bandwidths(table, 362 * c4p.GBIT)["a"] == pytest.approx(100 * c4p.GBIT)  # half of the bytes at 50


def test_planning_of_small_networks_is_perfect():
    for row in scale.planned((16, 64), queue_pairs=1):
        assert row.gap == pytest.approx(0, abs=1e-9)
        assert row.flows == row.nics
        assert row.queue_pairs == 2 * row.nics


def test_the_largest_difference_is_told_and_judged(monkeypatch, capsys, tmp_path):
    off = 0.0

    def simgrid(instance):
        return reference.simulated(instance).finished * (1 + off)

    monkeypatch.setattr(reference, "find_simgrid", lambda: "python-of-the-test")
    monkeypatch.setattr(reference, "by_simgrid", simgrid)
    path = tmp_path / "rows.json"
    assert main(["planning", "simgrid", "--seeds=3", f"--json={path}"]) == 0
    assert "largest relative difference of a completion time: 0.0e+00" in capsys.readouterr().out
    assert [row["seed"] for row in json.loads(path.read_text())] == [0, 1, 2]
    off = 1e-6
    assert main(["planning", "simgrid", "--seeds=3"]) == 1
    assert "1.0e-06" in capsys.readouterr().out


def test_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setenv(reference.PYTHON_VARIABLE, "/nowhere/python")
    reference.find_simgrid.cache_clear()
    try:
        with pytest.raises(CollcompError, match="python3-simgrid"):
            reference.find_simgrid()
        assert main(["planning", "simgrid"]) == 1
        assert "python3-simgrid" in "".join(capsys.readouterr())
    finally:
        reference.find_simgrid.cache_clear()


def test_what_simgrid_says_when_it_fails(monkeypatch):
    monkeypatch.setattr(reference, "find_simgrid", lambda: sys.executable)
    with pytest.raises(CollcompError, match="SimGrid failed"):
        reference.by_simgrid({})


@pytest.mark.parametrize(
    "options", [["c4p", "--nics=16"], ["scale", "--seeds=2"], ["scale", "--nics=17"], ["scale", "--nics=x"],
                ["c4p", "--seeds=0"], ["c4p", "--json=/nowhere/rows.json"]]
)  # fmt: skip
def test_options_that_cannot_be(options, capsys):
    assert main(["planning", *options]) == 2
    assert options[1].partition("=")[0][2:] in "".join(capsys.readouterr())


def test_tables_are_printed(rows, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(c4p, "rows", lambda seeds, progress: iter(rows))
    path = tmp_path / "rows.json"
    assert main(["planning", "c4p", "--seeds=1", f"--json={path}"]) == 0
    assert main(["planning", "scale", "--nics=16,32"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if "uplink down" in line]) == 7
    assert [line.endswith("0.00%") for line in said[-2:]] == [True, True]
    assert [row["what"] for row in json.loads(path.read_text())] == [row.what for row in rows]
