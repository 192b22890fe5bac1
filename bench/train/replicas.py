"""Ranks that average their gradients end with the same weights, or the average is wrong."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

from ..ranks import MeasurementError, World

__all__ = ["check_replicas"]


def check_replicas(world: World, weights: Iterable[np.ndarray]) -> None:
    """Raise `MeasurementError` on all ranks if their weights differ in any bit."""
    digest = 0
    for value in weights:
        digest = zlib.crc32(value.data, digest)
    if len(set(world.comm.allgather(digest))) > 1:
        raise MeasurementError("the ranks have not ended with the same weights")
