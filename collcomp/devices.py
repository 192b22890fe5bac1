"""Where arrays lie. All that collcomp asks of CuPy is asked here, and CuPy is imported when it is first needed."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np

__all__ = [
    "INSTALL",
    "counters",
    "cupy",
    "device_of",
    "empty",
    "like",
    "on_device",
    "read",
    "to_device",
    "to_host",
    "zeros",
]

#: What to do where something for CUDA is missing.
INSTALL = "pip install 'collcomp[cuda13]' (or cuda12, for drivers before 580) on a machine with an NVIDIA GPU"
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
    return type(array) is not np.ndarray and hasattr(array, "__cuda_array_interface__")


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
    return copy


def to_host(array: Any, dst: np.ndarray) -> None:
    """Copy a device's array to `dst`; complete when this returns."""
    array.get(out=dst)


def counters() -> Any:
    """Numbers (int32) that kernels of the current stream add to; zeros until then, and again after `read`."""
    stream = cupy().cuda.get_current_stream()
    return _counters(cupy().cuda.runtime.getDevice(), stream.ptr)


def read() -> list[int]:
    """Wait for the current stream; what was added to its `counters` since they were read.

    While a graph is captured there is nothing to wait for: all are 0 then.
    """
    found = counters()
    stream = cupy().cuda.get_current_stream()
    numbers = [0] * _COUNTERS if stream.is_capturing() else found.get(stream=stream).tolist()
    if any(numbers) or stream.is_capturing():
        found.fill(0)
    return numbers


@functools.cache
def _counters(device: int, stream: int) -> Any:
    return cupy().zeros(_COUNTERS, np.int32)
