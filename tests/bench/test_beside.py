"""A switch process beside ranks: they find it, it ends with them, and its failures are told."""

import os
import signal
import subprocess
import sys
import time

import pytest

from collcomp.bench import beside, launch, testbed
from collcomp.errors import CollcompError

# Answers datagrams; says at the end how many, and to whom.
STAND_IN = """
import os, pathlib, signal, socket, sys

if "--process" in sys.argv:
    pathlib.Path(sys.argv[sys.argv.index("--process") + 1], str(os.getpid())).touch()
host, port = sys.argv[sys.argv.index("--listen") + 1].split(":")
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.bind((host, int(port)))
print("starting", *sys.argv[3:], flush=True)
print("listening on {}:{}, a stand-in".format(*here.getsockname()), flush=True)
hosts = []

def leave(signum, frame):
    print("answered", *sorted(hosts))
    sys.exit()

signal.signal(signal.SIGTERM, leave)
while True:
    data, sender = here.recvfrom(9000)
    hosts.append(sender[0])
    here.sendto(data[::-1], sender)
"""

ASK = """
import os, socket, sys
from mpi4py import MPI
host, port = os.environ["COLLCOMP_SWITCH"].split(":")
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.settimeout(60)
here.connect((host, int(port)))
here.send(bytes(range(100)))
assert here.recv(9000) == bytes(range(100))[::-1]
MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 0:
    print("ranks say so", flush=True)
sys.exit(3 if MPI.COMM_WORLD.rank == 1 and "--fail" in sys.argv else 0)
"""


@pytest.fixture(params=["shm", "200mbit"])
def link(request):
    try:
        launch.find_mpirun()
    except CollcompError as error:
        pytest.skip(str(error))
    if request.param != "shm" and (reason := testbed.unavailable()):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    path = tmp_path / "switch.py"
    path.write_text(STAND_IN)
    monkeypatch.setattr(launch, "_SWITCH", [sys.executable, str(path)])
    return path


def run_beside(switch, program):
    """The result of `program` beside `switch`, both Python source."""
    command = beside.beside_command([sys.executable, "-c", switch], [sys.executable, "-c", program])
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--fail"], 3)])
def test_ranks_meet_the_switch(link, stand_in, capfd, arguments, code):
    """Behind shaped links it sees each rank's own address, from which there is no other way than the link."""
    assert launch.launch(["-c", ASK, *arguments], 2, link, switch=["--loss", "0.5"]) == code
    hosts = " ".join("127.0.0.1" if link == "shm" else testbed.rank_address(rank) for rank in range(2))
    lines = capfd.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith(("ranks", "starting", "answered", "listening"))]
    assert said == ["ranks say so", "starting --loss 0.5", f"answered {hosts}"]


READY = "print('listening on 127.0.0.1:5, all well', flush=True);"


def test_a_switch_that_does_not_start_is_told():
    answer = run_beside("import sys; sys.exit('no such program')", "print('never')")
    assert answer.returncode == 1
    assert "no such program" in answer.stderr
    assert "ended before it was ready, with exit code 1" in answer.stderr
    assert answer.stdout == ""


def test_a_switch_that_is_never_ready_is_told(monkeypatch, capfd):
    monkeypatch.setattr(beside, "_READY_SECONDS", 0.5)
    sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
    assert beside.main([*sleep, "--", sys.executable, "-c", "print('never')"]) == 1
    out, err = capfd.readouterr()
    assert "not ready after 0.5 seconds" in err
    assert out == ""


def test_a_switch_that_dies_is_told():
    switch = "import os; print(f'listening on here:{os.getpid()}', flush=True); print('bye', flush=True); os._exit(9)"
    program = (
        "import os, time; here, pid = os.environ['COLLCOMP_SWITCH'].split(':');"
        "exec('while os.path.exists(f\"/proc/{pid}\"): time.sleep(0.01)'); print(here)"
    )
    answer = run_beside(switch, program)
    assert answer.returncode == 1
    assert "ended before the program, with exit code 9" in answer.stderr
    assert answer.stdout == "here\nbye\n"


def test_a_program_ends_with_its_switch(monkeypatch, capfd):
    monkeypatch.setattr(beside, "_PARTING_SECONDS", 0.1)
    started = time.monotonic()
    switch = [sys.executable, "-c", READY + "import sys, time; time.sleep(0.5); sys.exit(9)"]
    assert beside.main([*switch, "--", sys.executable, "-c", "import time; time.sleep(100)"]) == 1
    assert "ended before the program, with exit code 9" in capfd.readouterr().err
    assert time.monotonic() - started < 90


def test_a_deaf_switch_is_killed():
    """It hears no SIGTERM, and fills its pipe meanwhile."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + READY
    answer = run_beside(deaf + "print('x' * 1000000, flush=True); time.sleep(100)", "print('done')")
    assert answer.returncode == 0
    assert answer.stdout == "done\n" + "x" * 1000000 + "\n"


@pytest.mark.parametrize(("exit_code", "seen"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 11)", 139)])
def test_exit_code_is_the_programs(exit_code, seen):
    assert run_beside(READY + "import time; time.sleep(100)", "import os;" + exit_code).returncode == seen


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_all_end_with_the_process_that_launched_them(link, stand_in, tmp_path, signum):
    processes, scratch = tmp_path / "processes", tmp_path / "scratch"
    processes.mkdir()
    scratch.mkdir()
    rank = (
        "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch();"
        "from mpi4py import MPI; time.sleep(100)"
    )
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"  # shells may have it ignored
        "from collcomp.bench import launch; rank, link, folder, switch = sys.argv[1:];"
        "launch._SWITCH = [sys.executable, switch];"
        "launch.launch(['-c', rank, folder], 2, link, switch=['--process', folder])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, rank, link, str(processes), str(stand_in)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},  # a launcher that is killed leaves files
    )
    until(lambda: len(os.listdir(processes)) == 3)
    process.send_signal(signum)
    assert process.wait(30) != 0
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in os.listdir(processes)))


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
