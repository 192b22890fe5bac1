"""One codec of each kind between real ranks, with its rounds and states: the same bits everywhere, within its bound."""

import numpy as np
import pytest
from helpers import F32, F64, operands, peak, reference, same_bits
from mpi4py import MPI

from collcomp.codecs import as_codec

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()

CASES = [
    ("fp8_e4m3", None),
    ("int4:asymmetric", "ring"),
    ("loco", None),
    ("qsgd", None),
    ("hadamard+int4", None),
    ("topk:ratio=0.1", "merged"),
    ("threshold:ratio=0.1,feedback", None),
    ("randomk:ratio=0.1", None),
    ("randomblock:ratio=0.1", "gathered"),
    ("powersgd:rank=2,feedback", None),
    ("shared_int", None),
    ("shared_int:bits=16,feedback", None),
    ("thc", None),
    ("lhc", None),
    ("bounded:abs=0.001", None),
    ("hbound", None),
    ("exponents", None),
    ("mpc", "ring"),
]


@pytest.mark.parametrize(("spec", "algorithm"), CASES)
@pytest.mark.parametrize("count", [3, 100_001])
def test_allreduce(linked, spec, algorithm, count):
    codec = as_codec(spec)
    for step in range(2):
        xs = operands(SIZE, count, seed=step)
        result = np.full(count, 77, F32)
        key = f"{spec}/{count}" if codec.needs_key else None
        linked.Allreduce(xs[RANK], result, codec=spec, algorithm=algorithm, key=key)
        assert same_bits(*WORLD.allgather(result))
        bound = codec.error_bound(np.array([float(SIZE)]), SIZE if codec.summable else 1)
        if bound is not None and not (codec.needs_key and step):
            limit = (2 * SIZE + 1) * float(bound[0]) + 1e-6 * SIZE
            assert peak(result.astype(F64) - reference(xs)) <= (limit if SIZE > 1 else 0)


@pytest.mark.parametrize("spec", ["shared_int", "lhc", "packed", "nonzeros"])
def test_movement(comm, spec):
    x = operands(SIZE, 5000)[RANK]
    gathered = np.empty(5000 * SIZE, F32)
    comm.Allgather(x, gathered, codec=spec)
    expected = np.concatenate(operands(SIZE, 5000))
    assert peak(gathered - expected) <= (0 if as_codec(spec).lossless or spec == "lhc" else 0.005)
