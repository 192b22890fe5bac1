"""Experiments with a switch, small ones."""

import json
import math
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from collcomp.bench import launch, testbed
from collcomp.bench.cli import main
from collcomp.bench.launch import link_rate
from collcomp.bench.switch import cell, command, prediction
from collcomp.bench.switch.cell import Cell, Outcome, measure
from collcomp.bench.switch.exactness import _compare, _rounded, shares
from collcomp.errors import CollcompError
from collcomp.switch.model import SwitchModel


@pytest.fixture(scope="module")
def mpirun():
    try:
        return launch.find_mpirun()
    except CollcompError as error:
        pytest.skip(str(error))


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "collcomp.bench.cli", "switch", *arguments], capture_output=True, text=True, check=False
    )


def test_reference_is_rounded_once():
    tie = [1.0, 2.0**-24, 2.0**-80]  # in float64 the last one is lost, and the tie goes down
    assert _rounded([np.array([x], np.float32) for x in tie]) == np.float32(1 + 2.0**-23)
    assert np.float32(math.fsum(tie)) == 1.0
    assert _rounded([np.array([x], np.float32) for x in (1e30, 1.0, -1e30)]) == 1.0


def test_errors_are_told_in_units_of_the_last_place():
    right = np.array([1.0, 2.0], np.float32)
    row = _compare("x", 2, right + np.array([0, 2.0**-21], np.float32), right)
    assert (row.share, row.largest_ulps) == (0.5, 2.0)


def test_signs_of_zero_are_told_apart():
    zeros = np.zeros(2, np.float32)
    assert _compare("x", 2, np.array([0.0, -0.0], np.float32), zeros).share == 0.5


def test_programs_that_take_fewer_ranks_are_left_out(tmp_path):
    path = tmp_path / "rows.json"
    done = bench("exactness", "--ranks=40", f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert [row["how"] for row in json.loads(path.read_text())] == ["exact", "sequential float32"]


def test_exact_sums_all_and_others_not():
    rows = {row.how: row.share for row in shares([5])}
    assert rows["exact"] == 1.0
    assert 0 < rows["sequential float32"] < 1
    assert 0 < rows["switchml"] < 1


def test_a_cell_counts_packets_and_sums_right(mpirun):
    small, large = measure(Cell(2, "shm", 40_000, windows=(1, 8), payload_nbytes=1000, iterations=1))
    assert (small.window, large.window) == (1, 8)
    assert small.sent - small.resent == large.sent - large.resent == 2 * 40
    assert small.digest == large.digest != "unlike"


def test_loss_changes_no_bit(tmp_path, monkeypatch, mpirun):
    monkeypatch.setattr(command, "_LOSSES", (0.0, 0.1))
    path = tmp_path / "rows.json"
    assert main(["switch", "loss", "--ranks=2", "--link=shm", "--size=256K", "--iterations=1", f"--json={path}"]) == 0
    whole, lossy = json.loads(path.read_text())
    assert whole["digest"] == lossy["digest"] != "unlike"
    assert (whole["loss"], lossy["loss"]) == (0.0, 0.1)
    assert lossy["resent"] > 0


def test_ctrl_c_prints_no_traceback(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    request = json.dumps({"cell": asdict(Cell(2, "shm", 4096)), "mpi": None})
    monkeypatch.setattr(sys, "argv", ["cell", request])
    monkeypatch.setattr(cell, "launch", interrupt)
    assert cell.main() == 130


def test_window_and_round_trip_let_through_so_much():
    setting = Cell(2, "8mbit", 1 << 20, payload_nbytes=910)  # 1000 bytes with all headers, of 1 MB/s
    few, many = (
        command._throughput(Outcome(window, (1.0,), 0, 0, ""), 4e-3, setting, link_rate("8mbit")) for window in (2, 8)
    )
    assert few.expected == pytest.approx(2 * 910 / 4e-3)
    assert many.expected == pytest.approx(910e3)


def test_model_is_warm_and_the_mean_of_seeds(monkeypatch):
    calls = []

    class Model(SwitchModel):
        def __init__(self, *arguments, seed, **more):
            super().__init__(*arguments, seed=seed, **more)
            calls.append([seed])

        def allreduce(self, operands):
            outcome = super().allreduce(operands)
            calls[-1].append(outcome)
            return outcome

    monkeypatch.setattr(prediction, "SwitchModel", Model)
    monkeypatch.setattr(prediction, "round_trip", lambda ranks, mpi: 1e-4)
    monkeypatch.setattr(prediction, "measure", lambda cell, mpi: [Outcome(cell.windows[0], (1.0,), 0, 0, "")])
    rows = list(prediction.predictions(1 << 20, 1, None))
    assert all(row.cell.nbytes >= 1 << 20 for row in rows)
    assert [seed for seed, *_ in calls] == [0, 0, 0, 1, 2, 0]
    assert all(len(outcomes) == 2 for _, *outcomes in calls)
    assert rows[0].predicted_seconds == calls[0][2].seconds > calls[0][1].seconds  # a burst passes the first time
    assert rows[2].predicted_resent == pytest.approx(np.mean([call[2].resent for call in calls[2:5]]))


def test_windows_are_drawn(tmp_path, mpirun):
    if reason := testbed.unavailable():
        pytest.skip(reason)
    pytest.importorskip("matplotlib")
    picture = tmp_path / "window.png"
    done = bench("window", "--ranks=2", "--link=100mbit", "--size=64K", "--iterations=1", f"--plot={picture}")
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 10_000
    assert [int(line.split()[0]) for line in done.stdout.splitlines()[3:]][:3] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["window", "--link=shm"], "--link: shm"),
        (["loss", "--plot=x.png"], "--plot"),
        (["loss", "--iterations=0"], "--iterations: 0"),
        (["loss", "--ranks=0"], "--ranks: 0"),
        (["loss", "--size=x"], "--size"),
        (["loss", "--size=3"], "--size: 3"),
        (["loss", "--size=4K"], "--size: 4K"),
        (["model", "--ranks=3"], "--ranks: 'model'"),
        (["model", "--link=shm"], "--link: 'model'"),
        (["model", "--size=512K"], "--size: 512K"),
        (["exactness", "--size=1M"], "--size: 'exactness'"),
        (["exactness", "--iterations=2"], "--iterations: 'exactness'"),
        (["exactness", "--link=shm"], "--link: 'exactness'"),
        (["exactness", "--ranks=1"], "--ranks: 1"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, capsys):
    assert main(["switch", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
