"""Without a codec every call gives what MPI's own gives."""

import numpy as np
import pytest
from mpi4py import MPI

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD
SIZE, RANK = WORLD.Get_size(), WORLD.Get_rank()
ROOT = SIZE - 1
N = 5
COUNTS = [r + 1 for r in range(SIZE)]
DISPLS = [r * (SIZE + 2) for r in range(SIZE)]
TOTAL = SIZE * (SIZE + 2)


def data(count, dtype="d"):
    return (np.arange(count) % 11 + 3 * RANK + 1).astype(dtype)


def zeros(count, dtype="d"):
    return np.zeros(count, dtype)


def at_root(make):
    return make() if RANK == ROOT else None


# Method, and what makes its arguments; the last buffer of them is compared (all are, where several change).
CALLS = {
    "sum": ("Allreduce", lambda: (data(N), zeros(N))),
    "prod": ("Allreduce", lambda: (data(N), zeros(N), MPI.PROD)),
    "max": ("Allreduce", lambda: (data(N), zeros(N), MPI.MAX)),
    "min": ("Allreduce", lambda: (data(N), zeros(N), MPI.MIN)),
    "integers": ("Allreduce", lambda: (data(N, "i"), zeros(N, "i"))),
    "band": ("Allreduce", lambda: (data(N, "i"), zeros(N, "i"), MPI.BAND)),
    "lor": ("Allreduce", lambda: (data(N, "?"), zeros(N, "?"), MPI.LOR)),
    "complex": ("Allreduce", lambda: (data(N, "D"), zeros(N, "D"))),
    "long": ("Allreduce", lambda: (data(N, "q"), zeros(N, "q"), MPI.SUM)),
    "in place": ("Allreduce", lambda: (MPI.IN_PLACE, data(N))),
    "spec": ("Allreduce", lambda: ([data(N), 3, MPI.DOUBLE], [zeros(N), 3, MPI.DOUBLE])),
    "bytes": ("Allreduce", lambda: ([data(N).tobytes(), MPI.DOUBLE], [bytearray(8 * N), MPI.DOUBLE])),
    "empty": ("Allreduce", lambda: (zeros(0), zeros(0))),
    "matrix": ("Allreduce", lambda: (data(6).reshape(2, 3), zeros(6).reshape(2, 3))),
    "maxloc": ("Allreduce", lambda: ([data(4, "i"), 2, MPI.TWOINT], [zeros(4, "i"), 2, MPI.TWOINT], MPI.MAXLOC)),
    "reduce": ("Reduce", lambda: (data(N), at_root(lambda: zeros(N)), MPI.SUM, ROOT)),
    "reduce prod": ("Reduce", lambda: (data(N), zeros(N), MPI.PROD, 0)),
    "reduce in place": (
        "Reduce",
        lambda: (MPI.IN_PLACE if RANK == ROOT else data(N), at_root(lambda: data(N)), MPI.SUM, ROOT),
    ),
    "reduce_scatter": ("Reduce_scatter", lambda: (data(sum(COUNTS)), zeros(COUNTS[RANK]), COUNTS)),
    "reduce_scatter without counts": ("Reduce_scatter", lambda: (data(sum(COUNTS)), zeros(COUNTS[RANK]))),
    "reduce_scatter in place": ("Reduce_scatter", lambda: (MPI.IN_PLACE, data(sum(COUNTS)), COUNTS, MPI.MAX)),
    "reduce_scatter_block": ("Reduce_scatter_block", lambda: (data(N * SIZE), zeros(N))),
    "reduce_scatter_block prod": ("Reduce_scatter_block", lambda: (data(N * SIZE), zeros(N), MPI.PROD)),
    "bcast": ("Bcast", lambda: (data(N), ROOT)),
    "bcast spec": ("Bcast", lambda: ([data(N), 2, MPI.DOUBLE], 0)),
    "bcast vector type": ("Bcast", lambda: ([data(12), 1, VECTOR], ROOT)),
    "allgather": ("Allgather", lambda: (data(N), zeros(N * SIZE))),
    "allgather in place": ("Allgather", lambda: (MPI.IN_PLACE, data(N * SIZE))),
    "allgather spec": ("Allgather", lambda: ([data(N), 2, MPI.DOUBLE], [zeros(N * SIZE), 2, MPI.DOUBLE])),
    "allgatherv": ("Allgatherv", lambda: (data(COUNTS[RANK]), [zeros(TOTAL), COUNTS, DISPLS, MPI.DOUBLE])),
    "allgatherv counts": ("Allgatherv", lambda: (data(COUNTS[RANK]), [zeros(sum(COUNTS)), COUNTS])),
    "allgatherv pair": ("Allgatherv", lambda: (data(COUNTS[RANK]), [zeros(TOTAL), (COUNTS, DISPLS)])),
    "gather": ("Gather", lambda: (data(N), at_root(lambda: zeros(N * SIZE)), ROOT)),
    "gatherv": (
        "Gatherv",
        lambda: (data(COUNTS[RANK]), at_root(lambda: [zeros(TOTAL), COUNTS, DISPLS, MPI.DOUBLE]), ROOT),
    ),
    "scatter": ("Scatter", lambda: (at_root(lambda: data(N * SIZE)), zeros(N), ROOT)),
    "scatterv": (
        "Scatterv",
        lambda: (at_root(lambda: [data(TOTAL), COUNTS, DISPLS, MPI.DOUBLE]), zeros(COUNTS[RANK]), ROOT),
    ),
    "alltoall": ("Alltoall", lambda: (data(N * SIZE), zeros(N * SIZE))),
    "alltoall in place": ("Alltoall", lambda: (MPI.IN_PLACE, data(N * SIZE))),
    "alltoallv": (
        "Alltoallv",
        lambda: (
            [data(TOTAL), COUNTS, DISPLS, MPI.DOUBLE],
            [zeros(TOTAL), [COUNTS[RANK]] * SIZE, DISPLS, MPI.DOUBLE],
        ),
    ),
}

VECTOR = MPI.DOUBLE.Create_vector(4, 1, 3)
VECTOR.Commit()


def contents(args):
    """The bytes of every buffer among `args`."""
    found = []
    for arg in args:
        if isinstance(arg, (list, tuple)):
            arg = arg[0]
        if isinstance(arg, (np.ndarray, bytearray, bytes)):
            found.append(bytes(memoryview(arg).cast("B")) if len(memoryview(arg)) else b"")
    return found


@pytest.mark.parametrize("case", CALLS)
def test_blocking(case, comm):
    method, arguments = CALLS[case]
    expected, got = arguments(), arguments()
    getattr(WORLD, method)(*expected)
    assert getattr(comm, method)(*got) is None
    assert contents(got) == contents(expected)
    assert (comm.records[-1].algorithm, comm.records[-1].codec) == ("native", "none")
    assert comm.records[-1].collective == method.lower().removesuffix("v").removesuffix("_block")


@pytest.mark.parametrize("case", CALLS)
def test_nonblocking(case, comm):
    method, arguments = "I" + CALLS[case][0].lower(), CALLS[case][1]
    expected, got = arguments(), arguments()
    getattr(WORLD, method)(*expected).Wait()
    request = getattr(comm, method)(*got)
    assert type(request) is MPI.Request
    assert request.Wait() is True
    assert contents(got) == contents(expected)


@pytest.mark.parametrize("case", CALLS)
def test_with_a_default_codec_that_does_not_apply(case, world):
    """Messages below min_nbytes stay native, whatever they are."""
    from collcomp.mpi import Comm

    ours = Comm(world.Dup(), codec="int4", deadline=30.0)
    method, arguments = CALLS[case]
    expected, got = arguments(), arguments()
    getattr(WORLD, method)(*expected)
    getattr(ours, method)(*got)
    assert contents(got) == contents(expected)
    assert ours.records[-1].algorithm == "native"
    assert ours.records[-1].reason
    ours.Free()


@pytest.mark.parametrize("keyword", ["sendbuf", "recvbuf", "op", "root"])
def test_arguments_by_name(keyword, comm):
    given = {"sendbuf": data(N), "recvbuf": zeros(N), "op": MPI.SUM, "root": 0}
    expected = {"sendbuf": data(N), "recvbuf": zeros(N), "op": MPI.SUM, "root": 0}
    comm.Reduce(**given)
    WORLD.Reduce(**expected)
    np.testing.assert_array_equal(given["recvbuf"], expected["recvbuf"])
    names = getattr(MPI.Intracomm.Reduce, "__text_signature__", None) or keyword
    assert keyword in names


def test_operation_of_the_users_own(comm):
    def add(a, b, datatype):
        np.frombuffer(b, "d")[:] += np.frombuffer(a, "d")

    op = MPI.Op.Create(add, commute=True)
    comm.Allreduce(data(N), result := zeros(N), op)
    WORLD.Allreduce(data(N), expected := zeros(N), MPI.SUM)
    np.testing.assert_array_equal(result, expected)
    op.Free()


def test_persistent(comm):
    send, recv = data(N), zeros(N)
    request = comm.Allreduce_init(send, recv)
    assert isinstance(request, MPI.Prequest)
    for step in range(3):
        send[:] = data(N) + step
        request.Start()
        request.Wait()
        WORLD.Allreduce(send, expected := zeros(N))
        np.testing.assert_array_equal(recv, expected)
    request.Free()


@pytest.mark.parametrize("method", ["Allreduce", "Bcast", "Allgather"])
def test_errors_are_mpis_own(method, comm):
    args = {"Allreduce": (data(3), zeros(4)), "Bcast": (object(),), "Allgather": (data(1), zeros(1), 3)}[method]
    kinds = []
    for one in (WORLD, comm):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is is compared
            getattr(one, method)(*args)
        kinds.append(type(caught.value))
    assert kinds[0] is kinds[1]


# ---------------------------------------------------------------------- what is not overridden


def test_lower_case_methods(comm):
    thing = {"rank": RANK, "list": [1, 2]}
    assert comm.allreduce(RANK) == WORLD.allreduce(RANK)
    assert comm.bcast(thing, ROOT) == WORLD.bcast(thing, ROOT)
    assert comm.allgather(thing) == WORLD.allgather(thing)
    assert comm.gather(thing, ROOT) == WORLD.gather(thing, ROOT)
    assert comm.scatter(at_root(lambda: list(range(SIZE))), ROOT) == RANK
    assert comm.alltoall([RANK] * SIZE) == list(range(SIZE))
    assert comm.reduce(RANK, MPI.MAX, ROOT) == (SIZE - 1 if RANK == ROOT else None)
    assert comm.scan(1) == RANK + 1
    assert comm.sendrecv(thing, (RANK + 1) % SIZE, source=(RANK - 1) % SIZE)["rank"] == (RANK - 1) % SIZE


def test_other_operations(comm):
    comm.Barrier()
    comm.Scan(data(N), scanned := zeros(N))
    WORLD.Scan(data(N), expected := zeros(N))
    np.testing.assert_array_equal(scanned, expected)
    comm.Ibarrier().Wait()
    comm.Alltoallw(
        [data(SIZE), [1] * SIZE, [8 * r for r in range(SIZE)], [MPI.DOUBLE] * SIZE],
        [result := zeros(SIZE), [1] * SIZE, [8 * r for r in range(SIZE)], [MPI.DOUBLE] * SIZE],
    )
    WORLD.Alltoall(data(SIZE), expected := zeros(SIZE))
    np.testing.assert_array_equal(result, expected)


def test_point_to_point(comm):
    right, left = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    status = MPI.Status()
    request = comm.Isend(data(N), right, 5)
    comm.Recv(got := zeros(N + 2), left, 5, status)
    request.Wait()
    assert (status.Get_source(), status.Get_tag(), status.Get_count(MPI.DOUBLE)) == (left, 5, N)
    np.testing.assert_array_equal(got[:N], data(N) - 3 * RANK + 3 * left)
    comm.Sendrecv(data(N), right, 1, got, left, 1, status)
    assert status.Get_count(MPI.DOUBLE) == N
    receive = comm.Irecv(got)
    comm.Send(data(1), MPI.PROC_NULL)
    comm.Recv(got, MPI.PROC_NULL)
    comm.Isend(data(2), right, 3).Wait()
    receive.Wait(status)
    assert (status.Get_tag(), status.Get_count(MPI.DOUBLE)) == (3, 2)
