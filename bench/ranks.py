"""Benchmarks start their own ranks, or are ranks already; what the ranks know of their world."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from collcomp.errors import CollcompError

from . import enter, testbed
from .fabric.spec import TwoTier
from .launch import FABRIC_VARIABLE, LINK_VARIABLE, launch, link_rate, under_launcher

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["MeasurementError", "World", "launch_or_run", "print_once", "progress_bar", "show"]

_UNKNOWN_LINK = "unshaped"
# The launcher forwards the two streams apart: what is written to one has to arrive before the other goes on.
_FORWARDED = 0.03


class MeasurementError(CollcompError):
    """A measurement means nothing; raised on all ranks alike, so that each can leave in peace."""


@dataclass(frozen=True)
class World:
    """The ranks that a benchmark runs on.

    Attributes
    ----------
    comm : MPI.Intracomm
    link : str
        "shm", a rate such as "200mbit", or "unshaped" where another launcher than ours started the ranks.
    rate : float or None
        Bytes per second of each rank's link, None where it is not shaped.
    fabric : str or None
        The two-tier network that the links lead into, as `TwoTier.parse` takes it.
    mpi : str
        "mpich", "openmpi", ...
    mpi_version : str
    """

    comm: MPI.Intracomm
    link: str
    rate: float | None
    fabric: str | None
    mpi: str
    mpi_version: str

    @classmethod
    def here(cls) -> World:
        """The world that this process is a rank of."""
        from mpi4py import MPI

        link = os.environ.get(LINK_VARIABLE, _UNKNOWN_LINK)
        name, version = MPI.get_vendor()
        return cls(
            MPI.COMM_WORLD,
            link,
            None if link == _UNKNOWN_LINK else link_rate(link),
            os.environ.get(FABRIC_VARIABLE) or None,
            name.lower().replace(" ", ""),
            f"{name} {'.'.join(map(str, version))}",
        )

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self.comm.rank

    @property
    def network(self) -> TwoTier | None:
        """What `fabric` says."""
        return None if self.fabric is None else TwoTier.parse(self.fabric)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.comm.size

    @property
    def local_rank(self) -> int:
        """Which of the ranks of its machine this one is. Collective."""
        from mpi4py import MPI

        neighbours = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        rank = neighbours.rank
        neighbours.Free()
        return rank

    def sent_bytes(self) -> int | None:
        """Bytes that this rank's link has carried away so far, between two barriers; None where it is not shaped.

        The first barrier lets all that was sent arrive, the second keeps others from sending before all have read.
        """
        if self.rate is None:
            return None
        self.comm.Barrier()
        sent = testbed.link_bytes().sent
        self.comm.Barrier()
        return sent

    def largest(self, value: float) -> float:
        """Largest of all ranks' values."""
        from mpi4py import MPI

        return self.comm.allreduce(value, MPI.MAX)


def launch_or_run(
    argv: Sequence[str],
    body: Callable[[World], int],
    *,
    ranks: int | None,
    default_ranks: int,
    link: str | None,
    default_link: str,
    mpi: str | None,
    switch: list[str] | None = None,
    fabric: str | None = None,
) -> int:
    """Run `body` if this process is a rank, else launch ranks that run ``collcomp bench argv...``.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``collcomp bench`` that bring the ranks to this call again.
    body : callable
        Takes the `World`, returns the exit status.
    ranks, link, mpi, fabric : optional
        What the user asked for.
    default_ranks, default_link
        What ranks are launched with where the user did not say.
    switch : list of str, optional
        Arguments of a switch that is launched with them; see `launch`.

    Returns
    -------
    int
        Exit status.
    """
    if not under_launcher():
        program = ["-m", "collcomp.bench.cli", *argv]
        return launch(program, ranks or default_ranks, link or default_link, mpi, switch, fabric=fabric)
    world = World.here()
    wishes = (
        ("--ranks", ranks, world.size),
        ("--link", link, world.link),
        ("--mpi", mpi, world.mpi),
        ("--fabric", fabric, world.fabric),
    )
    for option, given, found in wishes:
        if given is not None and given != found:
            raise ValueError(f"{option}: {given!r}, but these ranks were started with {found!r}")
    try:
        return body(world)
    except MeasurementError as error:
        print_once(f"collcomp bench: {error}")
        return 1
    except Exception:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        world.comm.Abort(1)  # the others wait for this rank
        raise


def print_once(message: str) -> None:
    """Print an error, on rank 0 only where this process is a rank."""
    if enter.launched_rank() in (None, 0):
        print(message, file=sys.stderr, flush=True)


def progress_bar(world: World, total: float, unit: str) -> Any:
    """A tqdm bar on standard error of rank 0."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=unit,
        disable=world.rank != 0,
        mininterval=0.5,
        ncols=80,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    )


def show(bar: Any, text: str) -> None:
    """Print to standard output without tearing the bar apart."""
    if bar.disable:
        return
    bar.clear()
    sys.stderr.flush()
    time.sleep(_FORWARDED)
    print(text, flush=True)
    time.sleep(_FORWARDED)
    bar.refresh()
