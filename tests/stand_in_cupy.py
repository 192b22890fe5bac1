"""The part of CuPy that collcomp uses, on the host's memory: for tests where there is no GPU.

What CuPy refuses this refuses, too: arrays on a device are not taken for the host's, nor the other way round.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import stand_in_nccl

__all__ = ["asarray", "asnumpy", "cuda", "empty", "empty_like", "ndarray", "zeros"]


class ndarray:  # noqa: N801 - CuPy's name
    """A NumPy array that is not one."""

    __array_priority__ = 100

    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = self._host.__array_interface__
        return {**interface, "version": 3, "stream": 1}

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if out is not None:
            kwargs["out"] = tuple(_host(o) for o in out)
        result = getattr(ufunc, method)(*map(_host, inputs), **kwargs)
        return out[0] if out is not None else _device(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not all(issubclass(kind, ndarray) for kind in types):
            return NotImplemented
        return globals()[function.__name__](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "size", "nbytes", "itemsize", "ndim", "shape", "strides"):
            return getattr(self._host, name)
        raise AttributeError(f"the stand-in for CuPy has no {name!r}")

    @property
    def device(self) -> Any:
        return SimpleNamespace(id=0)

    @property
    def flags(self) -> Any:
        """Those that CuPy has, which are fewer than NumPy's."""
        names = ("c_contiguous", "f_contiguous", "owndata")
        return SimpleNamespace(**{name: getattr(self._host.flags, name) for name in names})

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._host.__array_interface__["data"][0])

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(np.asarray(self._host[index]))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[index] = _host(value)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self._host.view(dtype))

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self._host.reshape(*shape))

    def ravel(self) -> ndarray:
        return ndarray(self._host.ravel())

    def copy(self) -> ndarray:
        return ndarray(self._host.copy())

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        return ndarray(self._host.astype(dtype, copy=copy))

    def tobytes(self) -> bytes:
        return self._host.tobytes()

    def fill(self, value: Any) -> None:
        self._host.fill(value)

    def get(self, stream: Any = None, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        """A copy on the host, in `out` where there is one."""
        if out is None:
            return self._host.copy()
        out[...] = self._host
        return out

    def set(self, host: np.ndarray, stream: Any = None) -> None:
        """Copy from the host."""
        if not isinstance(host, np.ndarray):
            raise TypeError("only NumPy arrays can be copied from the host")
        self._host[...] = host

    def __iadd__(self, other: Any) -> ndarray:
        self._host += _host(other)
        return self

    def __isub__(self, other: Any) -> ndarray:
        self._host -= _host(other)
        return self

    def __imul__(self, other: Any) -> ndarray:
        self._host *= _host(other)
        return self

    def __itruediv__(self, other: Any) -> ndarray:
        self._host /= _host(other)
        return self

    def __add__(self, other: Any) -> ndarray:
        return ndarray(self._host + _host(other))

    def __mul__(self, other: Any) -> ndarray:
        return ndarray(self._host * _host(other))

    def sum(self) -> ndarray:
        return _device(self._host.sum())

    def __sub__(self, other: Any) -> ndarray:
        return ndarray(self._host - _host(other))

    def __neg__(self) -> ndarray:
        return ndarray(-self._host)


def _host(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _device(value: Any) -> Any:
    return ndarray(np.asarray(value))


def asarray(value: Any) -> ndarray:
    """`value` itself where it lies on the device, else a copy there."""
    if isinstance(value, ndarray):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        holder = type("Holder", (), {"__array_interface__": {**value.__cuda_array_interface__, "version": 3}})()
        return ndarray(np.asarray(holder))
    return ndarray(np.array(value))


def asnumpy(value: Any, stream: Any = None, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
    """A copy on the host."""
    return value.get(out=out)


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Uninitialised, and so that it shows when it is used."""
    host = np.empty(shape, dtype)
    host.view(np.uint8).fill(0xAB) if host.size else None
    return ndarray(host)


def empty_like(array: ndarray, dtype: Any = None) -> ndarray:
    """`empty`, of the shape of `array`."""
    return empty(array.shape, dtype or array.dtype)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """Zeros on the device."""
    return ndarray(np.zeros(shape, dtype))


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    """Whether they may have memory in common."""
    return np.may_share_memory(a._host, b._host)


def copyto(dst: ndarray, src: ndarray) -> None:
    """Copy on the device."""
    dst._host[...] = src._host


def concatenate(arrays: Any) -> ndarray:
    """One array after another."""
    return ndarray(np.concatenate([array._host for array in arrays]))


_events: weakref.WeakValueDictionary[int, _Event] = weakref.WeakValueDictionary()


def _query(address: int) -> int:
    event = _events[address]
    first, event.asked = not event.asked, True
    return 600 if first else 0


class _Device:
    def __init__(self, number: int) -> None:
        assert number == 0

    def use(self) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class _Event:
    """It has come about when it is asked for the second time."""

    def __init__(self) -> None:
        self.ptr, self.asked = id(self), False
        _events[self.ptr] = self

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass


class _Stream:
    ptr = 1
    capturing = False

    def __init__(self, non_blocking: bool = False) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def record(self) -> _Event:
        return _Event()

    def wait_event(self, event: _Event) -> None:
        pass

    def begin_capture(self, mode: int) -> None:
        _STREAM.capturing = True

    def end_capture(self) -> Any:
        """What was captured was done, too, and is not done again."""
        _STREAM.capturing = False
        return SimpleNamespace(launch=lambda stream: None)

    def synchronize(self) -> None:
        pass

    def is_capturing(self) -> bool:
        return self.capturing


_STREAM = _Stream()
cuda = SimpleNamespace(
    get_current_stream=lambda: _STREAM,
    Stream=_Stream,
    Device=_Device,
    MemoryPool=lambda: SimpleNamespace(malloc=None),
    using_allocator=lambda allocator: contextlib.nullcontext(),
    Event=_Event,
    get_elapsed_time=lambda begin, end: 1e3 * (end.time - begin.time),
    nccl=stand_in_nccl,
    # Ranks that are threads have a GPU each where NCCL is available, else all the same.
    runtime=SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceCount=lambda: 1,
        eventQuery=_query,
        getDeviceProperties=lambda device: {"name": b"stand-in", "multiProcessorCount": 2},
        runtimeGetVersion=lambda: 13000,
        streamCaptureModeRelaxed=2,
        deviceGetPCIBusId=lambda device: f"0000:{threading.get_ident() if stand_in_nccl.available else 0}",
    ),
)

# Beside CuPy there is CuPyX.
_cupyx = ModuleType("cupyx")
_cupyx.empty_pinned = np.empty  # type: ignore[attr-defined]
sys.modules["cupyx"] = _cupyx
