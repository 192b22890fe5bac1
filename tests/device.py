"""Arrays on the device: a GPU's where there is one, else the stand-in's, for which numba simulates its kernels."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import numpy as np
from gpu import has_gpu
from simulator import hasten

__all__ = ["to_device", "to_host"]


if not has_gpu():
    sys.modules["cupy"] = importlib.import_module("stand_in_cupy")
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        hasten()
cupy = importlib.import_module("cupy")


def to_device(array: np.ndarray) -> Any:
    """A copy of `array` on the device."""
    return cupy.asarray(array)


def to_host(array: Any) -> np.ndarray:
    """A copy of a device's array."""
    return cupy.asnumpy(array)
