"""``collcomp plan``, as it is typed."""

import json
import re
from pathlib import Path

import pytest

from collcomp.__main__ import main
from collcomp.planner.layout import Layout

TOPOLOGIES = Path(__file__).parent.parent / "mpi_configs" / "topologies"


def plan(name, *options):
    return main(["plan", str(TOPOLOGIES / f"{name}.yaml"), "--size", "64K,16M", *options])


@pytest.mark.parametrize(
    ("name", "algbw", "busbw"),
    [("dgx-a100-x1", "171.43", "300.00"), ("dgx-a100-x2", "173.33", "325.00"), ("testbed-star", "83.33", "125.00")],
)
def test_bounds_and_gaps_are_printed(name, algbw, busbw, capsys):
    assert plan(name) == 0
    out = capsys.readouterr().out
    assert f"cut bound: allreduce algbw {algbw}, busbw {busbw}" in out
    assert "gap 0.0%" in out
    assert re.search(r"best ring: busbw .*% above the cut bound, .*% above a bound for rings; ", out)
    assert "16 MiB" in out


def test_interleaved_ranks_get_a_layout_and_host_files(tmp_path, capsys):
    layout, hosts, picture = tmp_path / "layout.json", tmp_path / "hosts", tmp_path / "plan.png"
    options = ["--interleaved", "--layout", str(layout), "--hosts", str(hosts), "--plot", str(picture)]
    assert plan("testbed-two-tier", *options, "--codec", "auto:int8") == 0
    assert re.search("(direct|hierarchical) int8", capsys.readouterr().out)
    # Ranks are numbered along the ring by the files of hosts, and so is the layout.
    saved = Layout.load(layout)
    assert saved.order == tuple(range(8))
    of_rank = [line.split("\t") for line in (tmp_path / "hosts.devices").read_text().splitlines()]
    assert [host for _, host, _ in of_rank] == (tmp_path / "hosts.slurm").read_text().split()
    leaves = [{int(of_rank[rank][2].removeprefix("host")) // 4 for rank in group} for group in saved.groups]
    assert sorted(map(sorted, leaves)) == [[0], [1]]
    assert plan("testbed-two-tier", *options[:3], "--codec", "auto:int8") == 0
    assert sorted(map(sorted, Layout.load(layout).groups)) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert (tmp_path / "hosts.rankfile").read_text().startswith("rank 0=host")
    assert len((tmp_path / "hosts.slurm").read_text().split()) == 8
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_codecs_as_a_file_says(tmp_path, capsys):
    costs = {"identity": {"nbytes": 4.0, "encode": 0.0, "decode": 1e-12, "lossless": True}}
    costs["int8"] = {"nbytes": 1.0, "encode": 1e-12, "decode": 1e-12, "lossless": False}
    network = {"latency": 1e-5, "bandwidth": 1e9}
    path = tmp_path / "topology.json"
    path.write_text(
        json.dumps({"calibration": {"size": 2, "groups": 1, "network": network, "codecs": costs, "fits": []}})
    )
    assert plan("testbed-star", "--codec", "auto:int8", "--calibration", str(path)) == 0
    assert "direct int8" in capsys.readouterr().out


def test_one_way_links_get_no_trees_but_a_plan(tmp_path, capsys):
    links = [
        {"ends": [f"h{a}", f"h{b}"], "bandwidth": f"{1 + a} MB/s", "one_way": True} for a, b in ((0, 2), (2, 1), (1, 0))
    ]
    path = tmp_path / "round.yaml"
    path.write_text("nodes: [{name: 'h[0-2]', kind: device}]\nlinks:\n" + "".join(f"- {link}\n" for link in links))
    assert main(["plan", str(path), "--size", "1M", "--codec", "auto:int8"]) == 0
    out = capsys.readouterr().out
    assert "# no trees: topology: cables" in out
    assert "best ring: busbw 1.00" in out
    assert "bandwidths in MB/s" in out


def test_ranks_are_interleaved_by_what_hangs_on_the_same_switches(tmp_path, capsys):
    path = tmp_path / "ports.yaml"
    path.write_text(
        "family: leaf_spine\nhosts: 4\nleaves: 2\nspines: 2\nport_bandwidth: 1 GB/s\n"
        "nics_per_host: 1\nports_per_nic: 2\n"
    )
    layout = tmp_path / "layout.json"
    options = ["--interleaved", "--layout", str(layout), "--size", "1M", "--codec", "auto:int8"]
    assert main(["plan", str(path), *options]) == 0
    assert sorted(map(sorted, Layout.load(layout).groups)) == [[0, 2], [1, 3]]
    capsys.readouterr()
    assert main(["plan", str(path), "--ranks", "2", "--size", "1M", "--codec", "auto:int8"]) == 0
    assert "2 ranks, hosts: 2;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", (), "nothing.yaml: it cannot be read"),
        ("torus", ("--layout", "missing/layout.json"), "--layout: 'missing/layout.json'"),
        ("torus", ("--hosts", "missing/hosts"), "--hosts: 'missing/hosts"),
        ("torus", ("--plot", "/"), "--plot: '/' is a directory"),
        ("torus", ("--ranks", "99"), "--ranks: 99"),
        ("torus", ("--ranks", "1"), "--ranks: 1"),
        ("torus", ("--codec", "int8"), "codec: 'int8'"),
        ("torus", ("--codec", "auto:int9"), "unknown codec 'int9'"),
        ("torus", ("--size", "big"), "--size: 'big'"),
        ("torus", ("--calibration", "nothing.json"), "--calibration: 'nothing.json'"),
    ],
)
def test_mistakes_are_named(name, options, message, capsys):
    assert plan(name, *options) == 2
    assert re.search(message, capsys.readouterr().err)
