"""What users pass as buffers, as flat typed views.

Everything that NumPy, mpi4py or a GPU library would take is taken: the buffer protocol, ``__array_interface__``,
DLPack, ``__cuda_array_interface__``, and mpi4py's specs (``[data, count, datatype]`` and their relatives). The view
shares the object's memory. Where that cannot be (an array with gaps), the view is a copy, and `Buffer.commit` writes
it back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from collcomp.devices import cupy, device_of, on_device, share_memory

__all__ = ["Buffer", "as_buffer", "check_disjoint"]


_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(slots=True)
class Buffer:
    """A flat typed view of a user's object.

    Attributes
    ----------
    flat : ndarray, shape (count,)
        NumPy array, or a CuPy array when `device` is not ``"cpu"``.
    counts, displs : sequence of int, optional
        Elements and offsets per rank, where the user gave a vector spec.
    device : str
        ``"cpu"`` or ``"cuda:<index>"``.
    """

    flat: Any
    counts: Sequence[int] | None = None
    displs: Sequence[int] | None = None
    device: str = "cpu"
    origin: Any = None

    def commit(self) -> None:
        """Copy the values back when the view had to be a copy of a non-contiguous array."""
        if self.origin is not None:
            self.origin[...] = self.flat.reshape(self.origin.shape)

    def blocks(self, size: int, name: str) -> list[Any]:
        """The part of each of `size` ranks: by `counts` and `displs`, or equal parts."""
        if self.counts is None:
            count, rest = divmod(self.flat.size, size)
            if rest:
                raise ValueError(f"{name}: {self.flat.size} elements cannot be split into {size} equal blocks")
            return [self.flat[i * count : (i + 1) * count] for i in range(size)]
        counts = list(self.counts)
        if len(counts) != size:
            raise ValueError(f"{name}: {len(counts)} counts given for {size} ranks")
        displs = list(self.displs) if self.displs is not None else np.cumsum([0, *counts[:-1]]).tolist()
        if len(displs) != size:
            raise ValueError(f"{name}: {len(displs)} displacements given for {size} ranks")
        for rank, (count, displ) in enumerate(zip(counts, displs, strict=True)):
            if count < 0 or displ < 0 or displ + count > self.flat.size:
                raise ValueError(
                    f"{name}: block of rank {rank} (count {count}, displacement {displ}) does not fit into "
                    f"{self.flat.size} elements"
                )
        return [self.flat[d : d + c] for c, d in zip(counts, displs, strict=True)]


def as_buffer(obj: Any, name: str, *, writable: bool = False, parts: int = 1) -> Buffer:
    """A flat typed view of `obj`.

    Parameters
    ----------
    obj : object
        An array, tensor, bytearray, ..., or an mpi4py spec: ``[data, datatype]``, ``[data, count, datatype]``,
        ``[data, (counts, displs), datatype]``, ``[data, counts, displs, datatype]``.
    name : str
        The argument's name, for error messages.
    writable : bool
        The buffer will be written to.
    parts : int
        How many ranks' blocks it holds: a count in a spec is that of one block.

    Raises
    ------
    TypeError
        `obj` is no buffer, or its datatype has no NumPy equivalent.
    ValueError
        Read-only where `writable` is asked for, or a spec that does not fit the data.
    """
    if isinstance(obj, (list, tuple)):
        return _from_spec(obj, name, writable, parts)
    if type(obj) is not np.ndarray:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor):
            if obj.is_cuda:
                dtype = _BFLOAT16 if obj.dtype == torch.bfloat16 else None
                return _from_cuda(_importable(torch, obj), name, writable, dtype)
        elif on_device(obj):
            return _from_cuda(obj, name, writable)
    array = _host_array(obj, name)
    if writable and not array.flags.writeable:
        raise ValueError(f"{name}: the buffer is read-only")
    if array.flags.c_contiguous:
        return Buffer(array.reshape(-1))
    if array.flags.f_contiguous:  # MPI moves memory, so memory order it is
        return Buffer(array.T.reshape(-1))
    return Buffer(np.ascontiguousarray(array).reshape(-1), origin=array if writable else None)


def check_disjoint(send: Any, recv: Any) -> None:
    """`ValueError` when the flat arrays `send` and `recv` share memory."""
    if share_memory(send, recv):
        raise ValueError("sendbuf, recvbuf: the buffers overlap; use IN_PLACE to reduce in place")


def _host_array(obj: Any, name: str) -> np.ndarray:
    if isinstance(obj, np.ndarray):
        return obj
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(obj, torch.Tensor):
        array = _importable(torch, obj).numpy()
        return array.view(_BFLOAT16) if obj.dtype == torch.bfloat16 else array
    if hasattr(obj, "__array_interface__"):
        return np.asarray(obj)
    try:
        view = memoryview(obj)
    except TypeError:
        pass
    else:
        return np.asarray(view)
    if hasattr(obj, "__dlpack__"):
        try:
            return np.from_dlpack(obj)
        except (BufferError, RuntimeError) as error:
            raise TypeError(f"{name}: {type(obj).__name__} is not a buffer that NumPy takes: {error}") from None
    raise TypeError(f"{name}: {type(obj).__name__} is not a buffer")


def _importable(torch: Any, tensor: Any) -> Any:
    """A tensor as NumPy and CuPy import it: without gradients; of bfloat16 its bits, because it is none of theirs."""
    tensor = tensor.detach()
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def _from_cuda(obj: Any, name: str, writable: bool, dtype: np.dtype | None = None) -> Buffer:
    try:
        module = cupy()
    except TypeError as error:
        raise TypeError(f"{name}: the buffer is on a CUDA device; {error}") from None
    if writable and obj.__cuda_array_interface__["data"][1]:
        raise ValueError(f"{name}: the buffer is read-only")
    device, current = _device_of(module, obj), module.cuda.runtime.getDevice()
    if device != current:  # CuPy would make a copy on the current one
        raise ValueError(f"{name}: the buffer is on cuda:{device}, the current device is cuda:{current}")
    array = module.asarray(obj)
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: a CUDA buffer must be C-contiguous")
    flat = array.reshape(-1) if dtype is None else array.reshape(-1).view(dtype)
    return Buffer(flat, device=device_of(flat))


def _device_of(module: Any, obj: Any) -> int:
    device = getattr(obj, "device", None)
    number = getattr(device, "id", getattr(device, "index", None))  # CuPy's, or PyTorch's
    if number is None:
        address = obj.__cuda_array_interface__["data"][0]
        number = module.cuda.runtime.pointerGetAttributes(address).device if address else None
    return module.cuda.runtime.getDevice() if number is None else number


def _from_spec(spec: Sequence[Any], name: str, writable: bool, parts: int) -> Buffer:
    data, *rest = spec or [None]
    datatype = rest.pop() if rest and not _is_count(rest[-1]) else None
    buffer = as_buffer(data, name, writable=writable)
    if datatype is not None:
        dtype = _numpy_dtype(datatype, name)
        if buffer.flat.dtype != dtype:
            if buffer.origin is not None or buffer.flat.nbytes % dtype.itemsize:
                raise ValueError(f"{name}: {buffer.flat.nbytes} bytes of {buffer.flat.dtype} are no array of {dtype}")
            buffer.flat = buffer.flat.view(dtype)
    if len(rest) > 2:
        raise ValueError(f"{name}: a buffer spec has at most four items, got {len(spec)}")
    pair = rest[0] if len(rest) == 1 and _is_vector(rest[0]) and len(rest[0]) == 2 else ()
    if (pair and isinstance(pair, tuple)) or any(_is_vector(part) for part in pair):
        rest = list(pair)  # (count, displacement), or (counts, displacements), as one item
    counts, displs = [*rest, None, None][:2]
    if not _is_vector(counts) and not _is_vector(displs):
        displ = int(displs or 0)
        return _limit(buffer, buffer.flat.size - displ if counts is None else int(counts) * parts, name, displ)
    buffer.counts = [int(c) for c in counts] if _is_vector(counts) else [int(counts)] * len(displs)
    if displs is not None:
        buffer.displs = [int(d) for d in displs]
    return buffer


def _limit(buffer: Buffer, count: int, name: str, displ: int = 0) -> Buffer:
    if count < 0 or displ < 0 or displ + count > buffer.flat.size:
        raise ValueError(f"{name}: count {count} at {displ} does not fit into {buffer.flat.size} elements")
    if count == buffer.flat.size:
        return buffer
    if buffer.origin is not None:
        raise ValueError(f"{name}: a count needs a contiguous buffer")
    buffer.flat = buffer.flat[displ : displ + count]
    return buffer


def _is_vector(item: Any) -> bool:
    return isinstance(item, (list, tuple, np.ndarray))


def _is_count(item: Any) -> bool:
    return isinstance(item, (int, np.integer)) or _is_vector(item) or item is None


def _numpy_dtype(datatype: Any, name: str) -> np.dtype:
    try:
        return np.dtype(datatype.tocode() if hasattr(datatype, "tocode") else datatype)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: datatype {datatype!r} has no NumPy equivalent") from None
