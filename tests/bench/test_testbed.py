"""The testbed: counters, and ranks that can only meet over their shaped links."""

import json
import subprocess
import sys

import pytest

from collcomp.bench import launch, testbed

SEND_TO_NEIGHBOUR = """
import json, sys
from pathlib import Path
import numpy as np
from mpi4py import MPI
from collcomp.bench.testbed import link_bytes

comm = MPI.COMM_WORLD
data = np.ones(1 << 20, np.uint8)
received = np.empty_like(data)
before = link_bytes()
comm.Barrier()
comm.Sendrecv(data, (comm.rank + 1) % comm.size, recvbuf=received, source=(comm.rank - 1) % comm.size)
comm.Barrier()
after = link_bytes()
assert (received == 1).all()
answer = {"sent": after.sent - before.sent, "received": after.received - before.received, "size": comm.size}
Path(sys.argv[1], f"{comm.rank}.json").write_text(json.dumps(answer))
"""


@pytest.fixture
def shaped_links():
    if reason := testbed.unavailable():
        pytest.skip(reason)
    try:
        launch.find_mpirun()
    except launch.CollcompError as error:
        pytest.skip(str(error))


def test_link_bytes_counts_loopback():
    before = testbed.link_bytes("lo")
    assert before.sent >= 0
    assert before.received >= 0


def test_link_bytes_names_a_missing_interface():
    with pytest.raises(ValueError, match=r"'link9'.*lo"):
        testbed.link_bytes("link9")


def test_unavailable_is_one_sentence_or_none():
    reason = testbed.unavailable()
    assert reason is None or (reason and "\n" not in reason and "Traceback" not in reason)


def test_unavailable_without_pyroute2(monkeypatch):
    monkeypatch.setattr(testbed.sys, "platform", "linux")
    monkeypatch.setattr(testbed.importlib.util, "find_spec", lambda name: None)
    assert "pyroute2" in testbed.unavailable.__wrapped__()


def test_unavailable_elsewhere(monkeypatch):
    monkeypatch.setattr(testbed.sys, "platform", "darwin")
    assert "darwin" in testbed.unavailable.__wrapped__()


def test_unavailable_repeats_what_the_child_said(monkeypatch):
    child = [sys.executable, "-c", "import sys; sys.exit('the kernel forbids it')"]
    monkeypatch.setattr(testbed.sys, "platform", "linux")
    monkeypatch.setattr(testbed.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(testbed, "_this_module", lambda: child)
    assert testbed.unavailable.__wrapped__() == "the kernel forbids it"


@pytest.mark.parametrize("rate", [25e6, 125e6, 1.25e9])
def test_burst_holds_a_whole_segment(rate):
    assert testbed.burst_nbytes(rate) > 64 * 1024 + testbed.MTU


@pytest.mark.parametrize("ranks", [0, testbed.MAX_RANKS + 1])
def test_number_of_ranks_is_checked(ranks):
    command = testbed.hub_command(["true"], ranks, 25e6)
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert "--ranks" in answer.stderr


@pytest.mark.parametrize("ranks", [2, 3])
def test_bytes_cross_the_links(shaped_links, tmp_path, ranks):
    program = tmp_path / "program.py"
    program.write_text(SEND_TO_NEIGHBOUR)
    assert launch.launch([str(program), str(tmp_path)], ranks, "200mbit") == 0
    for rank in range(ranks):
        answer = json.loads((tmp_path / f"{rank}.json").read_text())
        assert answer["size"] == ranks
        assert answer["sent"] >= 1 << 20
        assert answer["received"] >= 1 << 20


def test_nothing_is_left_behind(shaped_links):
    def interfaces():
        with open("/proc/self/net/dev") as lines:
            return [line.partition(":")[0] for line in lines if ":" in line]

    before = interfaces()
    assert launch.launch(["-c", ""], 2, "200mbit") == 0
    assert interfaces() == before
