"""Whatever users pass becomes a flat typed view of the same memory."""

import array
import sys

import ml_dtypes
import numpy as np
import pytest
from device import to_device
from helpers import BF16, F32

from collcomp.buffers import as_buffer, check_disjoint


class OnlyInterface:
    """An object that knows nothing but ``__array_interface__``."""

    def __init__(self, x):
        self._kept = x
        self.__array_interface__ = x.__array_interface__


class OnlyDlpack:
    """An object that knows nothing but DLPack."""

    def __init__(self, x):
        self._x = x

    def __dlpack__(self, **options):
        return self._x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._x.__dlpack_device__()


class OnCuda:
    """Looks like an array on a GPU."""

    __cuda_array_interface__ = {"shape": (4,), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012


def ramp(dtype=F32, shape=(12,)):
    return np.arange(np.prod(shape)).astype(dtype).reshape(shape)


SHARED = {
    "numpy": lambda: (x := ramp(), x),
    "numpy 2-d": lambda: (x := ramp(shape=(3, 4)), x.reshape(-1)),
    "numpy 0-d": lambda: (x := np.array(3.0), x.reshape(-1)),
    "numpy float16": lambda: (x := ramp("f2"), x),
    "numpy int32": lambda: (x := ramp("i4"), x),
    "numpy bool": lambda: (x := np.zeros(4, bool), x),
    "numpy bfloat16": lambda: (x := ramp(BF16), x),
    "memory order": lambda: (x := np.asfortranarray(ramp(shape=(3, 4))), x.T.reshape(-1)),
    "bytearray": lambda: (x := bytearray(range(8)), np.frombuffer(x, np.uint8)),
    "memoryview": lambda: (x := memoryview(bytearray(16)).cast("f"), np.asarray(x)),
    "array.array": lambda: (x := array.array("d", [1, 2, 3]), np.frombuffer(x, np.float64)),
    "interface": lambda: (OnlyInterface(x := ramp()), x),
    "dlpack": lambda: (OnlyDlpack(x := ramp()), x),
    "contiguous slice": lambda: ((x := ramp())[3:7], x[3:7]),
}


@pytest.mark.parametrize("kind", SHARED)
def test_shares_memory(kind):
    given, view = SHARED[kind]()
    flat = as_buffer(given, "buf").flat
    assert flat.ndim == 1
    assert flat.dtype == view.dtype
    np.testing.assert_array_equal(flat, view)
    assert np.shares_memory(flat, view)


@pytest.mark.parametrize("kind", [kind for kind in SHARED if kind != "dlpack"])
def test_writes_reach_the_object(kind):
    given, view = SHARED[kind]()
    buffer = as_buffer(given, "buf", writable=True)
    buffer.flat[...] = np.ones(1, buffer.flat.dtype)
    buffer.commit()
    assert (view == np.ones(1, view.dtype)).all()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("shape", [lambda n: (n,), lambda n: (n, 3), lambda n: (3, n, 2)])
def test_empty_and_small_shapes(count, shape):
    x = np.ones(shape(count), F32)
    assert as_buffer(x, "buf", writable=True).flat.size == x.size


GAPS = {
    "every second": lambda: ramp(shape=(24,))[::2],
    "reversed": lambda: ramp()[::-1],
    "columns": lambda: ramp(shape=(4, 6))[:, 1:4],
    "transposed 3-d": lambda: ramp(shape=(2, 3, 4)).transpose(1, 0, 2),
    "column": lambda: ramp(shape=(4, 3))[:, 1],
}


@pytest.mark.parametrize("kind", GAPS)
def test_gaps_are_copied_in_and_out(kind):
    x = GAPS[kind]()
    base = x if x.base is None else x.base
    outside = base.copy()
    buffer = as_buffer(x, "buf", writable=True)
    np.testing.assert_array_equal(buffer.flat, x.reshape(-1))
    assert not np.shares_memory(buffer.flat, x)
    buffer.flat += 100
    before = x.copy()
    buffer.commit()
    np.testing.assert_array_equal(x, before + 100)
    assert (base != outside).sum() == x.size, "nothing but the view's own elements may change"


@pytest.mark.parametrize("kind", GAPS)
def test_gaps_of_what_is_only_read_are_not_written_back(kind):
    x = GAPS[kind]()
    before = x.copy()
    buffer = as_buffer(x, "buf")
    buffer.flat += 100
    buffer.commit()
    np.testing.assert_array_equal(x, before)


READ_ONLY = {
    "bytes": lambda: b"12345678",
    "memoryview": lambda: memoryview(b"12345678"),
    "flag": lambda: _locked(ramp()),
    "flag, with gaps": lambda: _locked(ramp()[::2]),
    "broadcast": lambda: np.broadcast_to(np.float32(1), (4,)),
    "interface": lambda: OnlyInterface(_locked(ramp())),
    "spec": lambda: [_locked(ramp()), 4],
}


def _locked(x):
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("kind", READ_ONLY)
def test_read_only_is_refused_for_writing(kind):
    as_buffer(READ_ONLY[kind](), "recvbuf")
    with pytest.raises(ValueError, match=r"recvbuf.*read-only"):
        as_buffer(READ_ONLY[kind](), "recvbuf", writable=True)


@pytest.mark.parametrize("thing", [3, None, object(), "text", {1: 2}, 1.5])
def test_no_buffer(thing):
    with pytest.raises(TypeError, match=f"sendbuf: {type(thing).__name__} is not a buffer"):
        as_buffer(thing, "sendbuf")


def test_a_buffer_of_another_device_is_refused(monkeypatch):
    """CuPy would take a copy of it, and nothing would arrive."""
    buffer = to_device(np.zeros(4, np.float32))
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "getDevice", lambda: 1)
    with pytest.raises(ValueError, match="recvbuf: the buffer is on cuda:0, the current device is cuda:1"):
        as_buffer(buffer, "recvbuf", writable=True)


# ---------------------------------------------------------------------- torch


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int32"])
def test_torch_shares_memory(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=getattr(torch, dtype))
    buffer = as_buffer(tensor, "buf", writable=True)
    assert buffer.flat.dtype == (BF16 if dtype == "bfloat16" else np.dtype(dtype))
    np.testing.assert_array_equal(buffer.flat.astype(float), np.arange(6))
    buffer.flat[2] = 9
    assert tensor[2] == 9


def test_torch_with_gradient_and_gaps():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12.0, requires_grad=True)
    assert as_buffer(tensor, "buf").flat.size == 12
    matrix = torch.arange(12.0).reshape(3, 4)[:, 1:3]
    buffer = as_buffer(matrix, "buf", writable=True)
    buffer.flat[...] = -1
    buffer.commit()
    assert (matrix == -1).all()


def test_torch_bfloat16_with_gaps():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(8, dtype=torch.bfloat16)[::2]
    buffer = as_buffer(tensor, "buf", writable=True)
    np.testing.assert_array_equal(buffer.flat.astype(float), [0, 2, 4, 6])
    buffer.flat[...] = ml_dtypes.bfloat16(5)
    buffer.commit()
    assert (tensor == 5).all()


# ---------------------------------------------------------------------- mpi4py's specs


def flat_of(spec, **options):
    return as_buffer(spec, "buf", **options)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (lambda x: [x], slice(0, 12)),
        (lambda x: [x, "f"], slice(0, 12)),
        (lambda x: (x, np.float32), slice(0, 12)),
        (lambda x: [x, 5], slice(0, 5)),
        (lambda x: [x, 0], slice(0, 0)),
        (lambda x: [x, 5, "f"], slice(0, 5)),
        (lambda x: [x, None, "f"], slice(0, 12)),
        (lambda x: [x, (5, 2), "f"], slice(2, 7)),
        (lambda x: [x, 5, 2, "f"], slice(2, 7)),
        (lambda x: [x, (None, 2), "f"], slice(2, 12)),
        (lambda x: [x, None], slice(0, 12)),
        (lambda x: [x, np.int64(5), "f"], slice(0, 5)),
    ],
)
def test_spec_of_one_block(spec, expected):
    x = ramp()
    flat = flat_of(spec(x)).flat
    np.testing.assert_array_equal(flat, x[expected])
    assert flat.size == 0 or np.shares_memory(flat, x)


@pytest.mark.parametrize(
    "spec",
    [
        lambda x: [x, [2, 3, 1], [0, 4, 9], "f"],
        lambda x: [x, (2, 3, 1), (0, 4, 9), "f"],
        lambda x: [x, ([2, 3, 1], [0, 4, 9]), "f"],
        lambda x: [x, ([2, 3, 1], [0, 4, 9])],
        lambda x: [x, np.array([2, 3, 1]), np.array([0, 4, 9]), "f"],
    ],
)
def test_vector_spec(spec):
    x = ramp()
    blocks = flat_of(spec(x)).blocks(3, "buf")
    assert [block.tolist() for block in blocks] == [[0, 1], [4, 5, 6], [9]]
    assert all(np.shares_memory(block, x) for block in blocks)


def test_vector_spec_without_displacements():
    blocks = flat_of([ramp(), [2, 3, 1], "f"]).blocks(3, "buf")
    assert [block.tolist() for block in blocks] == [[0, 1], [2, 3, 4], [5]]


def test_vector_of_two_ranks_is_no_count_and_displacement():
    blocks = flat_of([ramp(), [4, 5], "f"]).blocks(2, "buf")
    assert [block.size for block in blocks] == [4, 5]


def test_count_is_that_of_one_block():
    buffer = flat_of([ramp(), 3], parts=4)
    assert [block.tolist() for block in buffer.blocks(4, "buf")] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_bytes_under_a_datatype():
    memory = bytearray(16)
    buffer = as_buffer([memory, 3, "f"], "buf", writable=True)
    buffer.flat[...] = [1, 2, 3]
    assert np.frombuffer(memory, F32).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        (lambda x: [x, 13], ValueError, "count 13"),
        (lambda x: [x, -1], ValueError, "count -1"),
        (lambda x: [x, (10, 3), "f"], ValueError, "count 10 at 3"),
        (lambda x: [bytearray(7), "f"], ValueError, "7 bytes"),
        (lambda x: [x, "no such type"], TypeError, "no such type"),
        (lambda x: [x, 1, 2, 3, "f"], ValueError, "at most four"),
        (lambda x: [], TypeError, "not a buffer"),
        (lambda x: [3, 1], TypeError, "not a buffer"),
    ],
)
def test_wrong_specs(spec, error, says):
    with pytest.raises(error, match=f"buf: .*({says})"):
        flat_of(spec(ramp()))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (lambda x: [x, [2, 3], "f"], "2 counts given for 3"),
        (lambda x: [x, [2, 3, 1], [0, 1], "f"], "2 displacements given for 3"),
        (lambda x: [x, [2, 3, 1], [0, 1, 12], "f"], "rank 2.*12 elements"),
        (lambda x: [x, [2, -3, 1], [0, 1, 2], "f"], "rank 1"),
        (lambda x: [x, [2, 3, 1], [0, -1, 2], "f"], "rank 1"),
        (lambda x: x[:10], "10 elements.*3 equal"),
    ],
)
def test_wrong_blocks(spec, says):
    with pytest.raises(ValueError, match=f"buf: .*{says}"):
        flat_of(spec(ramp())).blocks(3, "buf")


def test_count_on_gaps():
    with pytest.raises(ValueError, match=r"buf: .*contiguous"):
        as_buffer([ramp()[::2], 3], "buf", writable=True)


def test_one_count_for_many_displacements():
    assert [block.tolist() for block in flat_of([ramp(), 2, [0, 4], "f"]).blocks(2, "buf")] == [[0, 1], [4, 5]]


def test_vector_spec_on_gaps_is_written_back():
    x = ramp(shape=(24,))
    buffer = as_buffer([x[::2], [2, 1], [0, 5], "f"], "buf", writable=True)
    for block in buffer.blocks(2, "buf"):
        block[...] = -1
    buffer.commit()
    assert np.flatnonzero(x == -1).tolist() == [0, 2, 10]


# ---------------------------------------------------------------------- overlap


def test_overlap():
    x = ramp()
    check_disjoint(x[:6], x[6:])
    with pytest.raises(ValueError, match="overlap"):
        check_disjoint(x[:7], x[6:])
    with pytest.raises(ValueError, match="overlap"):
        check_disjoint(x, x)
