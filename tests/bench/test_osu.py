"""The OSU-style benchmarks: what users write, what comes out, and that wrong results are counted."""

import json
import subprocess
import sys

import numpy as np
import pytest

from collcomp import local
from collcomp.bench import launch, ranks
from collcomp.bench.arguments import parse_codecs, parse_sizes
from collcomp.bench.cli import main
from collcomp.bench.osu import COLLECTIVES
from collcomp.bench.osu.driver import _busiest
from collcomp.bench.osu.message import values
from collcomp.bench.osu.validate import check_moved, check_sum, error_bound, judge, roundtrip, sparse_sum
from collcomp.bench.ranks import MeasurementError
from collcomp.codecs import Identity, Int8, TopK, as_codec
from collcomp.errors import CollcompError
from collcomp.planner.layout import Layout

KEYS = [
    "collective", "codec", "algorithm", "mpi", "ranks", "link", "nbytes", "seconds", "seconds_native", "bound_seconds",
    "wire_bytes", "ratio", "max_err", "wrong",
]  # fmt: skip


@pytest.fixture
def mpirun():
    try:
        return launch.find_mpirun()
    except CollcompError as error:
        pytest.skip(str(error))


def bench(*argv):
    return subprocess.run(
        [sys.executable, "-m", "collcomp.bench.cli", *argv], capture_output=True, text=True, timeout=110
    )


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("8:64", [8, 16, 32, 64]),
        ("64K:64M:4", [65536 << 2 * i for i in range(6)]),
        ("64K,1M", [65536, 1 << 20]),
        ("1M,8:16,8", [8, 16, 1 << 20]),
        ("4:100:10", [4, 40]),
        ("12", [12]),
    ],
)
def test_sizes(text, sizes):
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "64:8", "8:64:1", "8:64:x", "8:64:2:2", "9x", "-8", "6", "0", "8,,16"])
def test_wrong_sizes_are_named(text):
    with pytest.raises(ValueError, match="--sizes: '"):
        parse_sizes(text)


@pytest.mark.parametrize(
    ("text", "codecs"),
    [
        ("none,int8", [None, Int8()]),
        ("int8:block=64,rounding=stochastic,none", [Int8(block=64, rounding="stochastic"), None]),
        ("topk:ratio=0.01,feedback,identity", [TopK(ratio=0.01, feedback=True), Identity()]),
        ("int8,int8", [Int8()]),
    ],
)
def test_codecs(text, codecs):
    assert parse_codecs(text) == codecs


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["allreduce", "--codec", "int8,gzip"], ["--codec", "gzip"]),
        (["allreduce", "--codec", "int8,powersgd"], ["--codec", "powersgd", "--no-validate"]),
        (["allreduce", "--codec", "thc"], ["--codec", "thc", "--no-validate"]),
        (["allreduce", "--codec", "int8:size=3"], ["--codec", "size"]),
        (["allreduce", "--codec", "int4:feedback"], ["--codec", "int4:feedback"]),
        (["allreduce", "--sizes", "9x"], ["--sizes", "9x"]),
        (["alltoall", "--sizes", "8"], ["--sizes", "8"]),
        (["allreduce", "--link", "fast"], ["link", "fast"]),
        (["allreduce", "--ranks", "1"], ["--ranks", "1"]),
        (["latency", "--ranks", "4"], ["--ranks", "4"]),
        (["bcast", "--algorithm", "ring"], ["--algorithm", "ring"]),
        (["bcast", "--algorithm", "switched", "--loss", "0.1"], ["--algorithm", "switched"]),
        (["allreduce", "--algorithm", "ring", "--loss", "0.0"], ["--loss", "switched"]),
        (["allreduce", "--program", "atp"], ["--program", "switched"]),
        (["allreduce", "--algorithm", "switched", "--program", "sum"], ["--program", "sum", "exact"]),
        (["allreduce", "--algorithm", "switched", "--loss", "1"], ["--loss", "1.0"]),
        (["allreduce", "--algorithm", "switched", "--loss", "nan"], ["--loss", "nan"]),
        (["allreduce", "--algorithm", "switched", "--program", "atp", "--ranks", "33"], ["--ranks: 33", "atp", "32"]),
        (
            ["allreduce", "--algorithm", "switched", "--codec", "none,int8"],
            ["--codec: 'int8'", "'switched'", "verbatim or summable"],
        ),
        (["allreduce", "--algorithm", "merged", "--codec", "int8"], ["--codec: 'int8'", "'merged'", "sparse"]),
        (
            ["allreduce", "--algorithm", "switched", "--program", "atp", "--codec", "shared_int"],
            ["--codec: 'shared_int", "--program atp"],
        ),
        (["allreduce", "--algorithm", "hierarchical"], ["COLLCOMP_LAYOUT", "groups"]),
        (["allreduce", "--iterations", "0"], ["--iterations", "0"]),
        (["allreduce", "--json", "/nowhere/rows.json"], ["--json", "/nowhere/rows.json"]),
        (["allreduce", "--colour"], ["--colour"]),
        (["everything"], ["everything"]),
        (["train", "--seeds", "0"], ["--seeds", "0"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(argv, words, capsys):
    try:
        status = main(argv)
    except SystemExit as end:  # argparse
        status = end.code
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert all(word in said.err for word in words)


@pytest.mark.parametrize(
    ("argv", "switch"),
    [
        (["--algorithm", "switched"], []),
        (["--algorithm", "switched", "--loss", "0.01", "--program", "atp"], ["--program", "atp", "--loss", "0.01"]),
        (["--algorithm", "ring"], None),
        ([], None),
    ],
)
def test_the_algorithm_decides_whether_there_is_a_switch(monkeypatch, argv, switch):
    asked = []
    monkeypatch.setattr(ranks, "under_launcher", lambda: False)
    monkeypatch.setattr(ranks, "launch", lambda *arguments, fabric: asked.append(arguments) or 0)
    assert main(["allreduce", *argv]) == 0
    ((*_, of_switch),) = asked
    assert of_switch == switch


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", ["allreduce", "alltoall", "bcast", "latency"])
def test_rows(mpirun, tmp_path, name):
    path = tmp_path / "rows.json"
    outcome = bench(
        name, "--ranks=2", "--link=shm", "--sizes=8,256K", "--codec=none,identity,int8,topk", "--iterations=2",
        "--warmup=1", f"--json={path}",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    rows = json.loads(path.read_text())
    assert len(rows) == 8
    shown = [line for line in outcome.stdout.splitlines() if line and not line.startswith("#")]
    assert len(shown) == 1 + len(rows)
    for row in rows:
        assert set(KEYS) <= set(row)
        assert row["collective"] == name
        assert (row["ranks"], row["link"], row["wrong"]) == (2, "shm", 0)
        assert row["bound_seconds"] is None
        assert row["seconds"] > 0
        native = row["codec"] == "none"
        assert (row["algorithm"] == "native") == native
        assert (row["wire_bytes"] is None) == native
        if native:
            assert row["seconds"] == row["seconds_native"]
    ratios = {row["codec"]: row["ratio"] for row in rows if row["nbytes"] == 256 << 10}
    assert ratios["int8"] > 3.5
    assert ratios["topk:ratio=0.01"] > 40
    assert 0.99 < ratios["identity"] <= 1


def test_an_algorithm_alone_runs_without_compression(mpirun, tmp_path):
    path = tmp_path / "rows.json"
    argv = ["--ranks=2", "--sizes=64K", "--codec=none", "--algorithm=ring", "--iterations=1", f"--json={path}"]
    assert bench("allreduce", *argv).returncode == 0
    rows = json.loads(path.read_text())
    assert [(row["codec"], row["algorithm"]) for row in rows] == [("none", "native"), ("identity", "ring")]


def test_plot(mpirun, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "times.png"
    argv = ["--ranks=2", "--sizes=64K,128K", "--codec=int8", "--iterations=1", "--no-validate", f"--plot={path}"]
    assert bench("reduce", *argv).returncode == 0
    assert path.read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------- the validator


def test_values_can_be_had_in_parts():
    whole = values(3, 0, 200_000)
    assert np.array_equal(values(3, 65_530, 140_000), whole[65_530:140_000])
    assert not np.array_equal(whole[:100], values(2, 0, 100))


@pytest.mark.parametrize("spec", ["identity", "fp16", "bf16", "int8", "int8:block=64", "int4:rounding=stochastic"])
@pytest.mark.parametrize("offset", [0, 1, 100])
def test_errors_are_within_their_bound_wherever_blocks_begin(spec, offset):
    codec, x = as_codec(spec), values(0, 0, 5000) * np.float32(7)
    bound = error_bound(codec, np.abs(x).astype(np.float64))
    error = np.abs(roundtrip(codec, x[offset:]).astype(np.float64) - x[offset:])
    assert (error <= bound[offset:]).all()


@pytest.mark.parametrize("spec", ["none", "fp16", "bf16", "int8", "int4", "topk:ratio=0.02"])
@pytest.mark.parametrize(
    ("algorithm", "groups"),
    [
        ("direct", ()),
        ("ring", ()),
        ("gathered", ()),
        ("hierarchical", ((3, 0), (1, 2))),
        ("hierarchical", ((0,), (1,))),
    ],
)
def test_sums_are_right_until_one_is_planted_wrong(spec, algorithm, groups):
    size, count = sum(map(len, groups)) or 3, 5003
    options = {"layout": Layout(tuple(range(size)), groups)} if groups else {}
    codec = Identity() if spec == "none" else as_codec(spec)

    def rank(comm):
        recv = np.empty(count, np.float32)
        comm.allreduce(values(comm.rank, 0, count), recv, codec=codec, algorithm=algorithm)
        return recv

    result = local.run(size, rank, **options)[1]

    def wrong(part):
        checks = check_sum(result[part], codec, algorithm, size, count, part, groups, reencoded=range(size))
        return judge(checks).wrong

    whole, inner = slice(0, count), slice(1700, 3400)
    assert wrong(whole) == wrong(inner) == 0
    result[2000] += 4
    result[3000] = np.nan
    assert wrong(whole) == wrong(inner) == 2


@pytest.mark.parametrize("spec", ["identity", "int8", "topk"])
def test_copies_are_right_until_one_is_planted_wrong(spec):
    codec = as_codec(spec)
    got = roundtrip(codec, values(1, 100, 5100))
    assert judge(check_moved(got, codec, 1, slice(100, 5100))).wrong == 0
    assert judge(check_moved(got, codec, 0, slice(100, 5100))).wrong > 0
    got[7] += 1
    verdict = judge(check_moved(got, codec, 1, slice(100, 5100)))
    assert verdict.wrong == 1
    assert verdict.max_err > 0.9


def test_nothing_arriving_is_wrong():
    got = np.full(1000, np.nan, np.float32)
    assert judge(check_moved(got, Int8(), 0, slice(0, 1000))).wrong == 1000


def test_sparse_sums_know_who_encodes_again():
    codec = TopK(ratio=0.1)
    everyone = sparse_sum(codec, "direct", 2, 1000, reencoded=range(2))
    nobody = sparse_sum(codec, "direct", 2, 1000, reencoded=())
    assert np.count_nonzero(everyone) == 100
    assert np.count_nonzero(nobody) == 1000


# ---------------------------------------------------------------------- the definitions


@pytest.mark.parametrize(
    ("name", "algorithm", "fewest"),
    [
        ("allreduce", "direct", 150),
        ("allreduce", "ring", 150),
        ("allreduce", "gathered", 300),
        ("allreduce", "merged", 150),
        ("reduce", "gathered", 300),
        ("reduce", "merged", 150),
        ("reduce", "direct", 150),
        ("allgather", "direct", 300),
        ("gather", "direct", 300),
        ("scatter", "direct", 300),
        ("reduce_scatter", "direct", 75),
        ("alltoall", "direct", 75),
        ("bcast", "direct", 100),
        ("bw", "direct", 100),
    ],
)
def test_fewest_bytes_on_the_busiest_link(name, algorithm, fewest):
    assert COLLECTIVES[name].fewest_bytes(100, 4, algorithm) == fewest


# ---------------------------------------------------------------------- the link


class _ShapedWorld:
    rate, link, size = 25e6, "200mbit", 4

    def largest(self, value):
        return value


def test_bytes_that_do_not_cross_the_link_fail_loudly():
    operation = COLLECTIVES["allreduce"](0, 4, 1 << 20)
    world = _ShapedWorld()
    assert _busiest(world, operation, "native", None, 1.6e6) == 1.6e6
    assert _busiest(world, operation, "direct", 4e5, 4.1e5) == 4e5
    for algorithm, recorded, counted in (("native", None, 2000.0), ("direct", 4e5, 0.0)):
        with pytest.raises(MeasurementError, match=r"allreduce of 1048576 bytes .* 200mbit link"):
            _busiest(world, operation, algorithm, recorded, counted)
