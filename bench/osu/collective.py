"""What the driver needs to know of a collective; each has a file of its own.

``size`` in a table is the message as MPI counts it on each rank, like in the OSU micro-benchmarks: the whole vector of
allreduce, reduce, reduce_scatter and bcast; the block of one rank in allgather, gather and scatter; one message of
latency, bw and bibw. Only alltoall differs, whose size is the whole send buffer, as in nccl-tests.

``algbw`` is the amount of data that the operation is about (`Collective.volume`) over the time, ``busbw`` that times
nccl-tests' factor (`Collective.bus_factor`), which makes it comparable with the speed of a link:

============== ====================== ============
collective     volume                 factor
============== ====================== ============
allreduce      size                   2 (n - 1) / n
reduce, bcast  size                   1
reduce_scatter size                   (n - 1) / n
alltoall       size                   (n - 1) / n
allgather      n size                 (n - 1) / n
gather         n size                 (n - 1) / n
scatter        n size                 (n - 1) / n
latency, bw    size                   1
bibw           2 size                 1
============== ====================== ============
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from collcomp import devices
from collcomp.codecs import Codec
from collcomp.planner.cost import work_of

from .message import ITEMSIZE
from .validate import Check

__all__ = ["Collective"]


class Collective(ABC):
    """One collective at one size on one rank, with its buffers.

    Parameters
    ----------
    rank, size : int
    nbytes : int
        The size in the table.
    """

    name: ClassVar[str]
    #: One line for the help.
    summary: ClassVar[str]
    #: Between two ranks, so that there are no algorithms to choose from.
    point_to_point: ClassVar[bool] = False
    #: Whether the message is cut into one equal block a rank.
    divided: ClassVar[bool] = False
    #: Whether operands are combined, so that codecs may remember what they left out.
    reduces: ClassVar[bool] = False

    #: Results, empty where this rank has none; they are overwritten before a call that is checked.
    recv: np.ndarray
    #: Messages in the time of one call, and those of them that one rank sends.
    messages: int = 1
    sent_messages: int = 1

    def __init__(self, rank: int, size: int, nbytes: int) -> None:
        self.rank = rank
        self.size = size
        self.nbytes = nbytes
        self.count = nbytes // ITEMSIZE
        self.allocate()

    # ------------------------------------------------------------------ what each file says

    @abstractmethod
    def allocate(self) -> None:
        """Make the buffers."""

    @abstractmethod
    def call(self, comm: Any, **how: Any) -> None:
        """Do it once. `how` is empty where `comm` is mpi4py's own."""

    @abstractmethod
    def checks(self, codec: Codec, algorithm: str) -> Iterable[Check]:
        """What to check of this rank's results; ranks share the work where all have the same results."""

    # ------------------------------------------------------------------ what some files say otherwise

    @classmethod
    def fewest_bytes(cls, frame_nbytes: float, size: int, algorithm: str) -> float:
        """Bytes that the busiest link must carry in one direction, when a message of `nbytes` is a frame so long."""
        return work_of(cls.name, algorithm, size).wire * frame_nbytes

    @classmethod
    def fewest_sent(cls, frame_nbytes: float, size: int, algorithm: str) -> float:
        """Bytes that the rank that sends most must send."""
        return cls.fewest_bytes(frame_nbytes, size, algorithm)

    def volume(self) -> float:
        """Bytes that the operation is about."""
        return self.nbytes

    def bus_factor(self) -> float:
        """Bytes over the busiest link for each byte of `volume`, at best."""
        return 1.0

    def same_everywhere(self) -> np.ndarray | None:
        """Results that must be the same bits on all ranks; None where ranks have different ones."""
        return None

    def reset(self) -> None:
        """Spoil the results, so that a call that does nothing is found out."""
        self.recv.fill(np.nan)

    # ------------------------------------------------------------------ helpers

    def move(self, place: Callable[[Any], Any]) -> None:
        """Have all buffers where `place` puts them: on a device, or on the host."""
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) or devices.on_device(value):
                setattr(self, name, place(value))

    def share(self) -> slice:
        """The elements of a common result of `count` elements that this rank checks."""
        return slice(self.count * self.rank // self.size, self.count * (self.rank + 1) // self.size)
