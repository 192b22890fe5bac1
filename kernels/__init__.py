"""Kernels: arrays in, arrays out. `cpu` and `cuda` have the same functions, for arrays of the host and of devices."""

from types import ModuleType
from typing import Any

from collcomp.devices import on_device
from collcomp.kernels import cpu, cuda

__all__ = ["kernels_for"]


def kernels_for(array: Any, name: str) -> ModuleType:
    """Module `name` of the kernels for where `array` lies: ``"quantised"``, ``"casts"``, ``"sparse"``."""
    return cuda.load(name) if on_device(array) else cpu.load(name)
