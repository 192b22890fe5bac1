"""Plans in the words of launchers and libraries."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from collcomp.planner.flows import export
from collcomp.planner.flows.ecmp import addresses_of, hops, switches_of
from collcomp.planner.flows.hashing import FiveTuple
from collcomp.planner.flows.placing import LeastLoaded
from collcomp.planner.flows.table import Flow, FlowTable
from collcomp.planner.layout import Layout
from collcomp.planner.topology.families import leaf_spine

HOSTS = ["c", "a", "b", "b", "a", "c"]


def test_ranks_are_numbered_along_the_ring():
    assert export.in_order(Layout((2, 0, 1)), ["a", "b", "c"]) == ["c", "a", "b"]
    with pytest.raises(ValueError, match="hosts"):
        export.in_order(Layout((0, 1)), ["a"])


def test_each_rank_of_a_rankfile_has_a_core_of_its_own():
    lines = export.openmpi_rankfile(HOSTS).splitlines()
    assert lines == [
        "rank 0=c slot=0", "rank 1=a slot=0", "rank 2=b slot=0",
        "rank 3=b slot=1", "rank 4=a slot=1", "rank 5=c slot=1",
    ]  # fmt: skip


def test_lists_of_hosts():
    assert export.openmpi_sequence(HOSTS) == export.slurm_hostfile(HOSTS) == "c\na\nb\nb\na\nc\n"
    assert export.device_of_ranks(["b", "a"], ["b.gpu1", "a.gpu0"]) == "0\tb\tb.gpu1\n1\ta\ta.gpu0\n"
    assert export.mpich_rankmap(HOSTS) == ("c:2\na:2\nb:2\n", "0,1,2,2,1,0")


def test_hydra_starts_ranks_where_the_map_says(tmp_path):
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if mpiexec is None or "-rankmap" not in subprocess.run([mpiexec, "-help"], capture_output=True, text=True).stdout:
        pytest.skip("no mpiexec of MPICH that takes -rankmap")
    hostfile, rankmap = export.mpich_rankmap(HOSTS)
    (tmp_path / "hosts").write_text(hostfile)
    command = [mpiexec, "-verbose", "-launcher", "fork", "-f", "hosts", "-rankmap", rankmap, "-n", "6", "true"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    placed = {}
    for line in (said.stdout + said.stderr).splitlines():
        if host := re.search(r"--hostname (\w+) ", line):
            for rank, count in re.findall(r"--exec-rank (\d+) --exec-proc-count (\d+)", line):
                placed.update({int(rank) + i: host[1] for i in range(int(count))})
    assert [placed[rank] for rank in range(6)] == HOSTS


def test_settings_say_what_is_known_and_nothing_else():
    assert export.nccl_settings() == export.ucx_settings([]) == export.mpich_settings({}) == ""
    assert export.nccl_settings(adapters=["mlx5_0:1", "mlx5_1:1"], cross_nic=False, queue_pairs=8) == (
        "NCCL_IB_HCA==mlx5_0:1,mlx5_1:1\nNCCL_CROSS_NIC=0\nNCCL_IB_QPS_PER_CONNECTION=8\nNCCL_IB_SPLIT_DATA_ON_QPS=1\n"
    )
    assert export.nccl_settings(interfaces=["eth0"], gid_index=3, algorithm="Ring", protocol="Simple") == (
        "NCCL_SOCKET_IFNAME==eth0\nNCCL_IB_GID_INDEX=3\nNCCL_ALGO=Ring\nNCCL_PROTO=Simple\n"
    )
    assert export.ucx_settings(["mlx5_0:1"], rails=1) == "UCX_NET_DEVICES=mlx5_0:1\nUCX_MAX_RNDV_RAILS=1\n"
    assert export.mpich_settings({"allreduce": "ring"}) == (
        "MPIR_CVAR_DEVICE_COLLECTIVES=percoll\nMPIR_CVAR_ALLREDUCE_DEVICE_COLLECTIVE=0\n"
        "MPIR_CVAR_ALLREDUCE_INTRA_ALGORITHM=ring\n"
    )


def test_mpich_knows_its_settings():
    tool = pytest.importorskip("mpi4py.MPI")
    if "MPICH" not in tool.Get_library_version():
        pytest.skip("another MPI")
    import ctypes

    try:
        library = ctypes.CDLL(str(Path(sys.executable).parents[1] / "lib" / "libmpi.so.12"))
    except OSError as error:
        pytest.skip(str(error))
    index = ctypes.c_int()
    library.MPI_T_init_thread(0, ctypes.byref(index))
    for line in export.mpich_settings({"allreduce": "ring", "allgather": "ring"}).splitlines():
        name = line.partition("=")[0].encode()
        assert library.MPI_T_cvar_get_index(name, ctypes.byref(index)) == 0, name
    library.MPI_T_finalize()


def test_every_queue_pair_has_a_port_that_leads_it_there():
    topology = leaf_spine(4, 4, 4, port_bandwidth=1.0, ports_per_nic=2, planes=2)
    table = FlowTable(topology)
    ends = [tuple(f"host{h}.nic0.port{p}" for p in range(2)) for h in range(4)]
    table.add([Flow(job, ends[i - 1], ends[i], 1.0) for job in "ab" for i in range(4)], LeastLoaded(8))
    switches, addresses = switches_of(topology, np.random.default_rng(0)), addresses_of(topology)
    pairs = export.queue_pairs(table, addresses, switches)
    assert len(pairs) == 64
    assert len({(pair.source, pair.dest, pair.source_port) for pair in pairs}) == 64
    for pair in pairs:
        leaf, spine, _ = pair.via.split()
        packet = FiveTuple(pair.source_address, pair.dest_address, pair.source_port)
        assert f"{leaf.partition('.')[0]}.spine{switches[leaf].value(packet) % 4}" == spine
    placement = table.placements[0]
    (hop,) = hops(table, placement.flow, placement.ways[0], switches)
    assert hop.ways == 4

    rows = list(csv.DictReader(io.StringIO(export.queue_pairs_csv(pairs))))
    objects = json.loads(export.queue_pairs_json(pairs))
    assert [{name: str(value) for name, value in one.items()} for one in objects] == rows
    assert rows[0]["dest_port"] == "4791"
    with pytest.raises(ValueError, match=r"host\d\.nic0\.port0.* is missing"):
        export.queue_pairs(table, {}, switches)
