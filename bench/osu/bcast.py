"""Bcast: rank 0's vector, on all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from collcomp import devices
from collcomp.codecs import Codec
from collcomp.collectives.direct import chunks

from .collective import Collective
from .message import values
from .validate import Check, check_moved

__all__ = ["Bcast"]


class Bcast(Collective):
    """Size: the whole vector."""

    name = "bcast"
    summary = "rank 0's vector on all ranks"

    def allocate(self) -> None:
        self.recv = np.empty(self.count, np.float32)
        self.reset()

    def reset(self) -> None:
        if self.rank == 0:
            self.recv[...] = devices.like(values(0, 0, self.count), self.recv)
        else:
            super().reset()

    def call(self, comm: Any, **how: Any) -> None:
        comm.Bcast(self.recv, root=0, **how)

    def checks(self, codec: Codec, algorithm: str) -> Iterator[Check]:
        # Each other rank gets one part from the root, encoded by itself, and forwards it.
        for part in chunks(self.count, self.size - 1, codec.block):
            yield from check_moved(self.recv[part], codec, 0, part)

    def same_everywhere(self) -> np.ndarray:
        return self.recv
