"""The launcher: links' names, exit codes, what the ranks find, and how they end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from collcomp.bench import enter, launch, testbed
from collcomp.errors import CollcompError


@pytest.fixture
def mpirun():
    try:
        return launch.find_mpirun()
    except CollcompError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["shm", "200mbit"])
def link(request, mpirun):
    if request.param != "shm" and (reason := testbed.unavailable()):
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize(
    ("link", "rate"),
    [("shm", None), ("200mbit", 25e6), ("1gbit", 125e6), ("2.5gbit", 312.5e6), ("1500kbit", 187500.0)],
)
def test_link_rate(link, rate):
    assert launch.link_rate(link) == rate


@pytest.mark.parametrize("link", ["", "fast", "200", "200 mbit", "-1gbit", "1e3mbit", "0mbit", "33gbit", "1gbit\n"])
def test_link_rate_names_a_wrong_link(link):
    with pytest.raises(ValueError, match="link must be") as error:
        launch.link_rate(link)
    assert repr(link) in str(error.value)


@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({}, False),
        ({"PMI_RANK": "0"}, True),
        ({"PMIX_RANK": "1"}, True),
        ({"OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False),  # a batch script: srun is still to come
    ],
)
def test_under_launcher(monkeypatch, variables, answer):
    for name in (*enter.RANK_VARIABLES, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.under_launcher() is answer


def test_a_rank_starts_no_ranks(monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    with pytest.raises(CollcompError, match="already"):
        launch.launch(["-c", ""], 2)


@pytest.mark.parametrize("ranks", [0, -1])
def test_ranks_are_checked(ranks):
    with pytest.raises(ValueError, match=f"ranks must be .* {ranks}"):
        launch.launch(["-c", ""], ranks)


def test_unknown_mpi_is_named():
    with pytest.raises(ValueError, match="lam"):
        launch.launch(["-c", ""], 2, mpi="lam")


def test_the_other_mpi_is_refused(mpirun):
    other = {"MPICH": "openmpi", "Open MPI": "mpich"}[launch._launcher_vendor(mpirun)]
    with pytest.raises(CollcompError, match=rf"--mpi {other}: .*pip install 'collcomp\[{other}\]'"):
        launch.launch(["-c", ""], 2, mpi=other)


def test_exit_code_is_passed_on(link):
    program = "import sys; from mpi4py import MPI; sys.exit(7 if MPI.COMM_WORLD.rank == 1 else 0)"
    assert launch.launch(["-c", program], 2, link) == 7


def test_ranks_find_their_link(link, tmp_path):
    program = (
        "import os, pathlib, sys; from mpi4py import MPI; from collcomp.bench.launch import LINK_VARIABLE;"
        "name = f'{MPI.COMM_WORLD.rank} {MPI.COMM_WORLD.size} {os.environ[LINK_VARIABLE]}';"
        "pathlib.Path(sys.argv[1], name).touch()"
    )
    assert launch.launch(["-c", program, str(tmp_path)], 3, link) == 0
    assert sorted(os.listdir(tmp_path)) == [f"{rank} 3 {link}" for rank in range(3)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_the_process_that_launched_them(link, tmp_path, signum):
    ranks, scratch = tmp_path / "ranks", tmp_path / "scratch"
    ranks.mkdir()
    scratch.mkdir()
    rank = (
        "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch();"
        "from mpi4py import MPI; time.sleep(100)"
    )
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"  # shells may have it ignored
        "from collcomp.bench.launch import launch; launch(sys.argv[1:3] + sys.argv[4:], 2, sys.argv[3])"
    )
    command = [sys.executable, "-c", program, "-c", rank, link, str(ranks)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},  # a launcher that is killed leaves files
    )
    _until(lambda: len(os.listdir(ranks)) == 2)
    process.send_signal(signum)
    assert process.wait(30) != 0
    _until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in os.listdir(ranks)))


def _until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
