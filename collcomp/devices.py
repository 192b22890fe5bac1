"""Where arrays lie. All that collcomp asks of CuPy is asked here, and CuPy is imported when it is first needed."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from collcomp.errors import TransportError

__all__ = [
    "INSTALL",
    "allocate",
    "allocate_pinned",
    "apart",
    "choose",
    "counters",
    "cupy",
    "current_stream",
    "describe",
    "device_of",
    "empty",
    "host_copy",
    "identity",
    "is_capturing",
    "is_done",
    "is_writable",
    "lasting",
    "like",
    "mark",
    "missing",
    "new_stream",
    "on_device",
    "read",
    "share_memory",
    "squared_norm",
    "stream_of",
    "to_device",
    "to_host",
    "wait_for",
    "zeros",
]

#: What to do where something for CUDA is missing.
INSTALL = "pip install 'collcomp[cuda13]' (or cuda12, for drivers before 580) on a machine with an NVIDIA GPU"
# What nearly all arrays are: told apart first, because every frame is asked several times where it lies.
_ndarray = np.ndarray
#: What an event is that has not come about (cudaErrorNotReady).
_NOT_READY = 600
#: Numbers that kernels can count at once.
_COUNTERS = 4


@functools.cache
def cupy() -> ModuleType:
    """CuPy; `TypeError` where it is not installed."""
    try:
        import cupy
    except ImportError as error:
        raise TypeError(f"device: 'cuda' needs CuPy, which cannot be imported ({error}): {INSTALL}") from None
    return cupy


def on_device(array: Any) -> bool:
    """Whether an array lies on a CUDA device."""
    return type(array) is not _ndarray and hasattr(array, "__cuda_array_interface__")


def device_of(array: Any) -> str:
    """``"cpu"`` or ``"cuda:<index>"``."""
    return f"cuda:{array.device.id}" if on_device(array) else "cpu"


def empty(count: int, dtype: np.dtype, beside: Any) -> Any:
    """`count` elements of `dtype`, uninitialised, where the array `beside` lies."""
    return cupy().empty(count, dtype) if on_device(beside) else np.empty(count, dtype)


def zeros(count: int, dtype: np.dtype, beside: Any) -> Any:
    """`count` zeros of `dtype`, where the array `beside` lies."""
    return cupy().zeros(count, dtype) if on_device(beside) else np.zeros(count, dtype)


def like(host: np.ndarray, beside: Any) -> Any:
    """The values of `host` where the array `beside` lies: itself, or a copy on the device."""
    return cupy().asarray(host) if on_device(beside) else host


def to_device(host: np.ndarray) -> Any:
    """A copy of `host` on the current device; complete when this returns."""
    copy = cupy().empty(host.size, host.dtype)
    copy.set(host)
    wait_for(copy)  # pinned memory is copied from while the program goes on
    return copy


def to_host(array: Any, dst: np.ndarray) -> None:
    """Copy a device's array to `dst`; complete when this returns."""
    array.get(out=dst)


def host_copy(array: Any) -> np.ndarray:
    """A copy of an array on the host."""
    return array.get() if on_device(array) else np.array(array)


def is_writable(array: Any) -> bool:
    """Whether an array may be written to; those on devices may."""
    return on_device(array) or bool(array.flags.writeable)


def is_done(event: Any) -> bool:
    """Whether an event has come about.

    Raises
    ------
    TransportError
        Something that was done on the device has failed.
    """
    status = cupy().cuda.runtime.eventQuery(event.ptr)
    if status not in (0, _NOT_READY):
        raise TransportError(f"CUDA: error {status} in what was done before on the device")
    return status == 0


def squared_norm(values: Any) -> float:
    """The sum of the squares; of a device's without cuBLAS, which CuPy's own `dot` would ask for."""
    return float((values * values).sum() if on_device(values) else np.dot(values, values))


def share_memory(a: Any, b: Any) -> bool:
    """Whether two arrays may have memory in common."""
    if type(a) is type(b) is _ndarray:
        return np.may_share_memory(a, b)
    if on_device(a) != on_device(b):
        return False
    return (cupy() if on_device(a) else np).may_share_memory(a, b)


def allocate(nbytes: int) -> Any:
    """Memory (uint8) of the current device, uninitialised."""
    return cupy().empty(nbytes, np.uint8)


def allocate_pinned(nbytes: int) -> np.ndarray:
    """Memory (uint8) of the host that devices copy from and to at full speed, uninitialised."""
    cupy()
    from cupyx import empty_pinned

    return empty_pinned(nbytes, np.uint8)


def wait_for(array: Any) -> None:
    """Wait until an array has the values that the current stream is to write; those of the host have them."""
    if on_device(array):
        current_stream().synchronize()


def mark(array: Any) -> Any:
    """What has been begun so far on the current stream, for `apart`; None for an array of the host."""
    return current_stream().record() if on_device(array) else None


@contextmanager
def apart(array: Any, after: Any = None) -> Iterator[None]:
    """Work on `array` in a thread of its own: on its device, on a stream of this thread, after what was marked.

    It has been done when the block ends. Nothing of this is needed for an array of the host.
    """
    if not on_device(array):
        yield
        return
    with cupy().cuda.Device(array.device.id):
        stream = _own_stream(array.device.id, threading.get_ident())
        if after is not None:
            stream.wait_event(after)
        with stream:
            try:
                yield
            finally:
                stream.synchronize()  # what failed has left work behind, too, on memory that may now be freed


@functools.cache
def _own_stream(device: int, thread: int) -> Any:
    return new_stream()


def identity() -> str:
    """What tells the current device from those of all other machines, and from the others of this one."""
    runtime = cupy().cuda.runtime
    machine = Path("/proc/sys/kernel/random/boot_id")
    boot = machine.read_text().strip() if machine.exists() else ""
    return f"{runtime.deviceGetPCIBusId(runtime.getDevice())} {boot or socket.gethostname()}"


def current_stream() -> Any:
    """CuPy's."""
    return cupy().cuda.get_current_stream()


def is_capturing(array: Any) -> bool:
    """Whether what is done to `array` now is captured in a graph, to be done later."""
    return on_device(array) and current_stream().is_capturing()


@contextmanager
def lasting(array: Any) -> Iterator[None]:
    """While a graph is captured, take memory that nothing else will ever use, because the graph will."""
    if not is_capturing(array):
        yield
        return
    pool = cupy().cuda.MemoryPool()
    _pools_of_graphs.append(pool)
    with cupy().cuda.using_allocator(pool.malloc):
        yield


_pools_of_graphs: list[Any] = []


def new_stream() -> Any:
    """A stream beside all others of the current device."""
    return cupy().cuda.Stream(non_blocking=True)


@contextmanager
def stream_of(stream: Any, device: int) -> Iterator[None]:
    """On the stream of another library, which has ``__cuda_stream__``, on its device."""
    with cupy().cuda.Device(device), cupy().cuda.Stream.from_external(stream):
        yield


def missing() -> str:
    """Why arrays on devices cannot be used; empty where they can."""
    try:
        count = cupy().cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy is not there, or has no driver to ask
        return str(error) if isinstance(error, TypeError) else f"device: 'cuda' cannot be used ({error}): {INSTALL}"
    return "" if count else f"device: 'cuda' cannot be used, there is no GPU: {INSTALL}"


def choose(number: int) -> None:
    """Use GPU `number` (modulo how many there are) in this thread from now on."""
    runtime = cupy().cuda.runtime
    cupy().cuda.Device(number % runtime.getDeviceCount()).use()


def describe() -> str:
    """The current device and what drives it, in one line."""
    runtime = cupy().cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    version = runtime.runtimeGetVersion()
    name = properties["name"].decode()
    return f"{name}, {properties['multiProcessorCount']} multiprocessors, CUDA {version // 1000}.{version % 1000 // 10}"


def counters() -> Any:
    """Numbers (int32) that the kernels of one encoder add to, until this thread calls `read` on the same stream.

    Those of a graph are never read.
    """
    counted, sink = _counters(cupy().cuda.runtime.getDevice(), threading.get_ident())
    return sink if current_stream().is_capturing() else counted


def read() -> list[int]:
    """Wait for the current stream; what was added to its `counters` since they were read.

    While a graph is captured there is nothing to wait for: all are 0 then.
    """
    if current_stream().is_capturing():
        return [0] * _COUNTERS
    found = counters()
    numbers = found.get().tolist()
    if any(numbers):
        found.fill(0)
    return numbers


@functools.cache
def _counters(device: int, thread: int) -> tuple[Any, Any]:
    found = cupy().zeros((2, _COUNTERS), np.int32)
    current_stream().synchronize()  # other streams may be the next to use them
    return found[0], found[1]
