"""Numba kernels for CUDA devices: those of `kernels.cpu`, name for name, and the same bits.

A function here takes what its namesake takes, as arrays on the device, and differs in what a device asks for:

- It only launches, on the current stream: it waits for nothing and allocates nothing. What its namesake
  returns it adds to `counters`, an int32 array of the caller's.
- A whole message is done at once: the last block may be cut off where the message ends.
- What is rare (raw blocks) is left to functions of its own, which are called once its number was read.

Where the hardware has an instruction that numba's simulator lacks, `primitives` has both; all else is one source, which
tests run in the simulator against the CPU's kernels.
"""

import functools
import importlib
from types import ModuleType

__all__ = ["load"]


@functools.cache
def load(name: str) -> ModuleType:
    """Module `name` of this folder: ``"quantised"``, ``"casts"``, ``"sparse"``."""
    return importlib.import_module(f"{__name__}.{name}")
