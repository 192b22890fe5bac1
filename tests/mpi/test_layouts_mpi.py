"""Layouts of a `Comm`: its own, that of its copies, and the part that its pieces have."""

import numpy as np
import pytest
from mpi4py import MPI

from collcomp.mpi import Comm
from collcomp.planner.layout import Layout

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD
SIZE, RANK = WORLD.Get_size(), WORLD.Get_rank()


def algorithm_of(comm):
    """Sum by two tiers, rightly; what the record says was done."""
    x = np.full(1000, comm.Get_rank() + 1, np.float32)
    comm.Allreduce(x, result := np.empty_like(x), codec="identity", algorithm="hierarchical")
    size = comm.Get_size()
    assert (result == size * (size + 1) / 2).all()
    return comm.records[-1].algorithm


def test_copies_and_pieces_keep_their_part_of_a_layout(world):
    """Ranks side by side are far from each other here; the pieces are those of odd and even ranks, in reverse."""
    groups = tuple((rank,) for rank in range(SIZE))
    ours = Comm(world.Dup(), layout=Layout(tuple(reversed(range(SIZE))), groups))
    done = "hierarchical" if SIZE > 1 else "direct"
    assert algorithm_of(ours) == done
    copy, piece = ours.Dup(), ours.Split(RANK % 2, -RANK)
    assert algorithm_of(copy) == done
    assert algorithm_of(piece) == ("hierarchical" if piece.Get_size() > 1 else "direct")
    empty = ours.Split(MPI.UNDEFINED if RANK else 0)
    assert (empty == MPI.COMM_NULL) == (RANK > 0)
    for comm in (copy, piece, ours):
        comm.Free()


def test_a_layout_of_other_ranks_is_refused():
    with pytest.raises(ValueError, match=f"layout: of {SIZE + 1} ranks, the communicator has {SIZE}"):
        Comm(WORLD, layout=Layout(tuple(range(SIZE + 1))))
