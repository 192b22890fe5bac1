"""Runs `tests/mpi` under the MPI launcher, so that ``pytest`` alone runs everything."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from switches import serving

TESTS = Path(__file__).parent
LIMIT_S = 240


def launch(ranks, *command):
    """What `command` printed as `ranks` ranks; fails with it where the command failed."""
    pytest.importorskip("mpi4py")
    mpirun = shutil.which("mpirun", path=sysconfig.get_path("scripts")) or shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("no mpirun")
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    more = ["--oversubscribe"] if "Open MPI" in version else []
    process = subprocess.Popen(
        [mpirun, *more, "-n", str(ranks), sys.executable, *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=TESTS.parent,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
        pytest.fail(f"{ranks} ranks hang after {LIMIT_S} s:\n{output}")
    assert process.returncode == 0, f"{ranks} ranks:\n{output}"
    return output


@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_as_ranks(ranks):
    output = launch(
        ranks, "-m", "pytest", "-q", "--with-mpi", "-p", "no:cacheprovider", "--timeout", "60",
        "--timeout-method", "thread", str(TESTS / "mpi"),
    )  # fmt: skip
    assert output.count(" passed") == ranks


def test_programs_find_the_switch(tmp_path, monkeypatch):
    """By the environment, also under ``collcomp run``."""
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy as np\n"
        "from mpi4py import MPI\n"
        "x = np.full(1000, MPI.COMM_WORLD.rank + 1, np.float32)\n"
        "MPI.COMM_WORLD.Allreduce(x, total := np.empty_like(x), algorithm='switched')\n"
        "assert (total == 3).all()\n"
    )
    with serving() as switch:
        monkeypatch.setenv("COLLCOMP_SWITCH", switch.address)
        output = launch(2, "-m", "collcomp", "run", "--report", str(program))
        assert switch.counts["results"] == 1
    assert re.search(r"allreduce +switched +identity +1 ", output), output


@pytest.mark.skipif("MPI4PY_TESTS" not in os.environ, reason="MPI4PY_TESTS names no folder with mpi4py's own tests")
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_mpi4py_does_not_notice(ranks):
    launch(ranks, str(TESTS / "mpi" / "mpi4py_suite.py"), os.environ["MPI4PY_TESTS"])
