"""The two-tier testbed: what is understood, what is built, and which way bytes go in it."""

import json
import subprocess
import sys

import pytest
from all_ways import all_ways

from collcomp.bench import launch, testbed
from collcomp.bench.fabric.spec import HASHED, TwoTier
from collcomp.bench.launch import link_rate

FABRIC = "leaves=2,spines=2,uplink=200mbit/100mbit,place=interleaved"

# Every rank sends a mebibyte to the next one, which is at the other leaf, on each path.
SEND_BY_EACH_PATH = """
import json, socket, sys
from pathlib import Path
import numpy as np
from mpi4py import MPI
from collcomp.bench.fabric.spec import rank_address
from collcomp.bench.fabric.uplinks import Uplinks
from collcomp.bench.ranks import World
from collcomp.bench.testbed import link_bytes

world = World.here()
comm, uplinks = world.comm, Uplinks(world.network)
right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
answer = {"mpi": 0, "paths": []}

def counted(action):
    comm.Barrier()
    before, own = uplinks.sent(), link_bytes().sent
    comm.Barrier()
    action()
    comm.Barrier()
    answer["own"] = link_bytes().sent - own
    return (uplinks.sent() - before).tolist()

def by_path(path):
    with socket.create_server((rank_address(comm.rank, path), 0)) as server:
        there = comm.sendrecv(server.getsockname(), left, source=right)
        with socket.create_connection(there, source_address=(rank_address(comm.rank, path), 0)) as out:
            comes, _ = server.accept()
            out.setblocking(False)
            left_to_send, got = memoryview(bytes(1 << 20)), 0
            while left_to_send or got < 1 << 20:
                if left_to_send:
                    try:
                        left_to_send = left_to_send[out.send(left_to_send):]
                    except BlockingIOError:
                        pass
                comes.settimeout(0.001)
                try:
                    got += len(comes.recv(1 << 16))
                except TimeoutError:
                    pass
            comes.close()

received = np.empty(1 << 20, np.uint8)
answer["mpi"] = counted(lambda: comm.Sendrecv(np.ones(1 << 20, np.uint8), right, recvbuf=received, source=left))
for path in range(world.network.spines + 1):
    answer["paths"].append(counted(lambda: by_path(path)))
Path(sys.argv[1], f"{comm.rank}.json").write_text(json.dumps(answer))
"""

SLOW_DOWN = """
import sys, time
from collcomp.bench.fabric.spec import rank_address
from collcomp.bench.fabric.uplinks import Uplinks
from collcomp.bench.ranks import World
import numpy as np

world = World.here()
def seconds():
    data = np.zeros(1 << 20, np.uint8)
    world.comm.Barrier()
    start = time.perf_counter()
    if world.rank == 0:
        world.comm.Send(data, 1)
    else:
        world.comm.Recv(data, 0)
    return world.largest(time.perf_counter() - start)

before = seconds()
if world.rank == 0:
    Uplinks(world.network).set_rate(0, 0, 1e6)
after = seconds()
assert after > 0.8 > before, (before, after)
"""


@pytest.fixture
def shaped_links():
    if reason := testbed.unavailable():
        pytest.skip(reason)
    if reason := testbed.unavailable("leaves=2,spines=2,uplink=200mbit"):
        pytest.skip(reason)
    try:
        launch.find_mpirun()
    except launch.CollcompError as error:
        pytest.skip(str(error))


def test_ranks_are_dealt_out():
    block = TwoTier(2, (25e6,))
    assert block.groups(5) == ((0, 1, 2), (3, 4))
    assert TwoTier(2, (25e6,), "interleaved").groups(5) == ((0, 2, 4), (1, 3))
    assert TwoTier(4, (25e6,)).groups(2) == ((0,), (1,)), "leaves without ranks are no groups"


def test_planner_sees_what_is_built():
    topology = TwoTier.parse(FABRIC).topology(4, 25e6)
    assert topology.devices == ("rank0", "rank1", "rank2", "rank3")
    assert topology.links["leaf0", "spine2"].bandwidth == link_rate("100mbit")
    assert topology.links["leaf0", "rank2"].bandwidth == 25e6
    assert set(all_ways(topology, "rank0", "rank1")) == {
        ("rank0", "leaf0", f"spine{j}", "leaf1", "rank1") for j in (1, 2)
    }
    assert all_ways(topology, "rank0", "rank2") == [("rank0", "leaf0", "rank2")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "''"),
        ("leaves=2", "spines="),
        ("leaves=2,spines=x,uplink=1gbit", "spines=x"),
        ("leaves=2,spines=2,uplink=fast", "'fast'"),
        ("leaves=2,spines=2,uplink=1gbit/2gbit/3gbit", "3 rates"),
        ("leaves=2,spines=2,uplink=1gbit,place=random", "'random'"),
        ("leaves=2,leaves=2,spines=2,uplink=1gbit", "'leaves=2'"),
        ("leaves=0,spines=2,uplink=1gbit", "leaves: 0"),
        ("leaves=2,spines=65,uplink=1gbit", "spines: 65"),
        ("leaves=2,spines=2,uplink=1gbit,planes=2", "'planes=2'"),
    ],
)
def test_what_is_wrong_is_named(text, says):
    with pytest.raises(ValueError, match="fabric: ") as caught:
        TwoTier.parse(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(("link", "switch", "says"), [("shm", None, "'shm'"), ("200mbit", [], "switch")])
def test_a_network_needs_links_and_has_no_other_switch(link, switch, says):
    with pytest.raises(ValueError, match=f"fabric: .*{says}"):
        launch.launch(["-c", ""], 2, link, switch=switch, fabric=FABRIC)


def test_a_wrong_network_is_told_by_the_testbed():
    answer = subprocess.run(testbed.hub_command(["true"], 2, 25e6, "leaves=2"), capture_output=True, text=True)
    assert answer.returncode == 2
    assert "fabric: " in answer.stderr


def test_bytes_go_the_way_of_their_address(shaped_links, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SEND_BY_EACH_PATH)
    ranks, mebibyte = 4, 1 << 20
    assert launch.launch([str(program), str(tmp_path)], ranks, "200mbit", fabric=FABRIC) == 0
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    assert all(answer["own"] >= mebibyte for answer in answers)
    # Two ranks at each leaf; what else there is are acknowledgements, and the launcher's own words.
    for by_leaf in answers[0]["mpi"], answers[0]["paths"][HASHED]:
        assert all(2 * mebibyte <= sum(by_spine) < 2.3 * mebibyte for by_spine in by_leaf)
    for by_leaf in answers[0]["paths"][1]:
        assert by_leaf[0] >= 2 * mebibyte > 20 * by_leaf[1]
    for by_leaf in answers[0]["paths"][2]:
        assert by_leaf[1] >= 2 * mebibyte > 20 * by_leaf[0]


def test_hashes_spread_connections(shaped_links):
    """Of 32 connections between the same two ranks, each spine carries some."""
    program = (
        "import socket; from collcomp.bench.ranks import World; from collcomp.bench.fabric.uplinks import Uplinks\n"
        "from collcomp.bench.fabric.spec import rank_address\n"
        "world = World.here(); comm = world.comm\n"
        "if world.rank == 1: server = socket.create_server((rank_address(1), 5000), backlog=32)\n"
        "comm.Barrier(); before = Uplinks(world.network).sent(); comm.Barrier()\n"
        "if world.rank == 0:\n"
        "    for _ in range(32): socket.create_connection((rank_address(1), 5000)).sendall(bytes(20000))\n"
        "    comm.Barrier(); sent = (Uplinks(world.network).sent() - before)[0]\n"
        "    assert all(by_spine > 40000 for by_spine in sent), sent\n"
        "else: comm.Barrier()\n"
    )
    assert launch.launch(["-c", program], 2, "200mbit", fabric=FABRIC) == 0


def test_an_uplink_can_be_slowed(shaped_links):
    fabric = "leaves=2,spines=1,uplink=200mbit"
    assert launch.launch(["-c", SLOW_DOWN], 2, "200mbit", fabric=fabric) == 0


def test_nothing_is_left_behind(shaped_links):
    def interfaces():
        with open("/proc/self/net/dev") as lines:
            return [line.partition(":")[0] for line in lines if ":" in line]

    before = interfaces()
    assert launch.launch(["-c", ""], 2, "200mbit", fabric=FABRIC) == 0
    assert interfaces() == before


def test_a_collective_crosses_it(shaped_links, tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", "collcomp.bench.cli", "allreduce", "--ranks=4", "--link=200mbit"]
    command += [f"--fabric={FABRIC}", "--sizes=64K", "--codec=none,int8", "--iterations=1", f"--json={path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert FABRIC in done.stdout
    assert [row["wrong"] for row in json.loads(path.read_text())] == [0, 0]
