"""Time and bytes of training steps, and of nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ..ranks import World

__all__ = ["Meter"]


class Meter:
    """Runs steps between barriers and counts what they take.

    Attributes
    ----------
    seconds : float
        From the start of each stretch of steps to the end of its slowest rank, summed.
    nbytes : int or None
        That this rank's interface has sent meanwhile, None where the links are not shaped.
    step_seconds : list of float
        Of each step, by the slowest rank.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.seconds = 0.0
        self.nbytes = None if world.rate is None else 0
        self.step_seconds: list[float] = []

    def run(self, step: Callable[[], None], steps: int) -> None:
        """Call `step` so many times. Collective."""
        from mpi4py import MPI

        before = self._world.sent_bytes()
        self._world.comm.Barrier()
        times = np.empty(steps + 1)
        times[0] = time.perf_counter()
        for i in range(steps):
            step()
            times[i + 1] = time.perf_counter()
        after = self._world.sent_bytes()
        slowest = np.diff(times, append=times[-1])
        slowest[-1] = times[-1] - times[0]
        self._world.comm.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
        self.step_seconds += slowest[:-1].tolist()
        self.seconds += float(slowest[-1])
        if before is not None and after is not None and self.nbytes is not None:
            self.nbytes += after - before
