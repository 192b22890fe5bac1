"""How kernels are compiled and launched."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.core import config

from collcomp.devices import current_stream

__all__ = ["LANES", "SIMULATED", "THREADS", "fine_grid", "grid", "inlined", "kernel", "launch"]

#: Whether numba runs kernels in its simulator, thread by thread in Python (``NUMBA_ENABLE_CUDASIM=1``).
SIMULATED = bool(config.ENABLE_CUDASIM)
#: Threads of a warp, and of a thread block. The simulator pays for every thread, so there are few.
LANES = 32
THREADS = 64 if SIMULATED else 256
#: Thread blocks that a multiprocessor has at once; loops over the grid are as long as the message needs.
_BLOCKS_PER_MULTIPROCESSOR = 1 if SIMULATED else 2048 // 256
_TURNS = 1 if SIMULATED else 4
# The simulator runs one kernel at a time.
_simulator = threading.Lock()
# Small messages make small grids; numba would warn of each.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


def kernel(function: Callable) -> Any:
    """A kernel, compiled when it is first launched with new types.

    No fastmath: results are the bits that CPUs give. That is not enough: LLVM contracts ``a * b + c`` all the same, so
    products that something is added to are written as `primitives.product`.
    """
    return cuda.jit(function)


def inlined(function: Callable) -> Any:
    """A function that kernels call."""
    if SIMULATED and "cuda" not in function.__code__.co_names:
        return function  # the simulator's own wrapper, which hands `cuda` in, costs more than the call
    return cuda.jit(function, device=True)


def grid(parts: int) -> int:
    """How many thread blocks to launch for so many parts, each for one thread block: no more than run at once."""
    return max(1, min(parts, _multiprocessors(_device()) * _BLOCKS_PER_MULTIPROCESSOR))


def fine_grid(parts: int) -> int:
    """As `grid`, but more: registers decide how many thread blocks run at once, and the device hands out the rest."""
    return max(1, min(parts, _multiprocessors(_device()) * _BLOCKS_PER_MULTIPROCESSOR * _TURNS))


def launch(function: Any, blocks: int, *arguments: Any, threads: int = THREADS) -> None:
    """Launch a kernel on CuPy's current stream; nothing is waited for."""
    passed = [_passed(argument) for argument in arguments]
    if SIMULATED:
        with _simulator:
            function[blocks, threads](*passed)
        return
    function[blocks, threads, _stream(cuda.current_context().device.id, current_stream().ptr)](*passed)


@functools.cache
def _stream(device: int, address: int) -> Any:
    """Numba's object for a stream of others; one a stream, by which numba knows how it launched the last time."""
    return cuda.external_stream(address)


def _passed(argument: Any) -> Any:
    """An argument as numba takes it: without its own conversion, which would wait for the array's stream."""
    if isinstance(argument, tuple):
        return tuple(_passed(item) for item in argument)
    if not hasattr(argument, "__cuda_array_interface__"):
        return argument
    if SIMULATED:
        return cuda.simulator.cudadrv.devicearray.FakeCUDAArray(_host_view(argument))
    return cuda.as_cuda_array(argument, sync=False)


def _host_view(array: Any) -> np.ndarray:
    """What lies at an array's address, which in the simulator is one of the host's."""
    holder = SimpleNamespace(__array_interface__={**array.__cuda_array_interface__, "version": 3})
    return np.asarray(holder)


def _device() -> int:
    return 0 if SIMULATED else cuda.current_context().device.id


@functools.cache
def _multiprocessors(device: int) -> int:
    return 2 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT
