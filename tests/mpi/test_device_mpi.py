"""Buffers on a device: frames staged through the host's memory, and given to an MPI that takes a device's."""

import numpy as np
import pytest
from device import to_device, to_host
from helpers import operands, same_bits
from mpi4py import MPI

from collcomp import Communicator
from collcomp.bench.osu import COLLECTIVES
from collcomp.bench.osu.driver import Settings, measure
from collcomp.bench.ranks import World, progress_bar
from collcomp.codecs import as_codec
from collcomp.mpi import Comm
from collcomp.transports.mpi import MpiTransport

WORLD = MPI.COMM_WORLD
SIZE, RANK = WORLD.Get_size(), WORLD.Get_rank()
# `tests/test_mpirun.py` comes here with 1 to 4 ranks, `make test-gpu` with 2; each spends seconds on the simulator.
pytestmark = [pytest.mark.mpi, pytest.mark.skipif(SIZE != 2, reason="seen with 2 ranks")]
COUNT = 300
each_codec = pytest.mark.parametrize("codec", ["int8", "identity"])


@each_codec
def test_a_communicator_of_mpi4py(codec):
    comm = Comm(WORLD)
    xs = operands(SIZE, COUNT)
    expected, found = np.zeros(COUNT, np.float32), to_device(np.zeros(COUNT, np.float32))
    comm.Allreduce(xs[RANK], expected, codec=codec)
    comm.Allreduce(to_device(xs[RANK]), found, codec=codec)
    assert same_bits(to_host(found), expected)
    comm.Iallreduce(MPI.IN_PLACE, found, codec=codec, average=True).Wait()
    comm.Allreduce(MPI.IN_PLACE, expected, codec=codec, average=True)
    assert same_bits(to_host(found), expected)


@pytest.mark.parametrize("aware", ["0", "1"])
@each_codec
def test_messages_of_mpi(codec, aware, monkeypatch):
    """The stand-in's memory is the host's, which every MPI takes."""
    monkeypatch.setenv("COLLCOMP_GPU_AWARE_MPI", aware)
    xs = operands(SIZE, COUNT)
    comm = Communicator(MpiTransport(WORLD.Dup()))
    expected, found = np.zeros(COUNT, np.float32), to_device(np.zeros(COUNT, np.float32))
    comm.allreduce(xs[RANK], expected, codec=codec)
    for _ in range(2):
        comm.allreduce(to_device(xs[RANK]), found, codec=codec)
        assert same_bits(to_host(found), expected)
    comm.bcast(found, codec=codec, root=SIZE - 1)
    comm.bcast(expected, codec=codec, root=SIZE - 1)
    assert same_bits(to_host(found), expected)
    comm.close()


def test_small_calls_of_a_default_codec_are_staged_too(monkeypatch):
    """MPI itself would be given an address that it cannot read."""
    monkeypatch.delenv("COLLCOMP_GPU_AWARE_MPI", raising=False)
    comm = Comm(WORLD, codec="int8")
    found = to_device(np.zeros(4, np.float32))
    comm.Allreduce(to_device(np.full(4, RANK, np.float32)), found)
    assert (to_host(found) == SIZE * (SIZE - 1) / 2).all()
    record = [*comm.records][-1]
    assert record.codec == "identity"


@pytest.mark.parametrize("name", ["allreduce", "bcast", "gather"])
def test_benchmarks_on_a_device(name):
    settings = Settings((None, as_codec("int8")), (4 * 60 * SIZE,), iterations=1, warmup=1, device="cuda")
    with progress_bar(World.here(), 1, name) as bar:
        plain, coded = measure(World.here(), COLLECTIVES[name], settings, bar)
    assert plain.wrong == coded.wrong == 0
    assert plain.codec == "none"
    assert coded.wire_bytes > 0
