"""Numba kernels for the CPU.

`load` imports a module of kernels when it is first used: numba alone takes longer to import than the whole package.
"""

import functools
import importlib
from types import ModuleType

__all__ = ["PACKED", "PACKED_LANES", "load"]

#: Integers that `packing` packs together, and lanes that they stand in; here because codecs know them without numba.
PACKED, PACKED_LANES = 256, 8


@functools.cache
def load(name: str) -> ModuleType:
    """Module `name` of this folder: ``"quantised"``, ``"casts"``, ``"sparse"``."""
    return importlib.import_module(f"{__name__}.{name}")
