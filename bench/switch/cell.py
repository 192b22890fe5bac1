"""One run of ranks beside a switch: `measure` launches it, the ranks are `python -m collcomp.bench.switch.cell`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from collcomp.errors import CollcompError
from collcomp.kernels.cpu import packets
from collcomp.switch.client import SwitchClient

from ..launch import launch
from ..osu.message import values
from ..ranks import World, print_once

__all__ = ["Cell", "Outcome", "measure", "round_trip"]

_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Cell:
    """What to run.

    Attributes
    ----------
    ranks : int
    link : str
        As `collcomp.bench.launch.link_rate` takes it.
    nbytes : int
        Of each rank's float32 message.
    windows : tuple of int
        Packets under way of each rank; each is measured.
    loss : float
        Share of packets that the switch drops, each way.
    payload_nbytes : int
        Most bytes of a packet's values.
    iterations : int
    """

    ranks: int
    link: str
    nbytes: int
    windows: tuple[int, ...] = (32,)
    loss: float = 0.0
    payload_nbytes: int = 8192
    iterations: int = 3


@dataclass(frozen=True)
class Outcome:
    """What came out with one window.

    Attributes
    ----------
    window : int
    seconds : tuple of float
        Of the slowest rank, for each iteration.
    sent, resent : float
        Packets of all ranks in one iteration, and how many of them were sent again.
    digest : str
        Of the sums' bits.
    """

    window: int
    seconds: tuple[float, ...]
    sent: float
    resent: float
    digest: str

    @property
    def median(self) -> float:
        """Seconds of an iteration."""
        return median(self.seconds)


def measure(cell: Cell, mpi: str | None = None) -> list[Outcome]:
    """Run ranks beside a switch; one outcome for each window.

    Raises
    ------
    CollcompError
        The run failed; the message is what it said.
    """
    request = json.dumps({"cell": asdict(cell), "mpi": mpi})
    command = [sys.executable, "-m", "collcomp.bench.switch.cell", request]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(rows) != len(cell.windows):
        raise CollcompError(f"{cell.ranks} ranks beside a switch failed with exit code {done.returncode}")
    return [Outcome(**{**row, "seconds": tuple(row["seconds"])}) for row in map(json.loads, rows)]


def round_trip(ranks: int, mpi: str | None = None) -> float:
    """Seconds from sending a packet to its sum, where no link holds it up.

    One small packet of each rank is under way at a time: far less than the link's rate, so its token bucket stays
    full, and passes packets at once.
    """
    probe = Cell(ranks, "200mbit", nbytes=64 << 10, windows=(1,), payload_nbytes=64, iterations=7)
    (outcome,) = measure(probe, mpi)
    return outcome.median / (probe.nbytes / probe.payload_nbytes)


def _start(cell: Cell, mpi: str | None) -> int:
    switch = ["--loss", repr(cell.loss), "--seed", "1", "--payload", str(cell.payload_nbytes)]
    try:
        return launch(["-m", "collcomp.bench.switch.cell", sys.argv[1]], cell.ranks, cell.link, mpi, switch)
    except (CollcompError, ValueError) as error:  # no MPI, more ranks than the testbed has
        print_once(f"collcomp bench: {error}")
        return 1


def _run(world: World, cell: Cell, address: str) -> None:
    for window in cell.windows:
        job = world.comm.bcast(time.time_ns() if world.rank == 0 else None)
        client = SwitchClient(
            address, job, world.rank, world.size, slots=window, deadline=_DEADLINE_S, check=lambda: None
        )
        outcome = _repeat(world, client, cell, window)
        world.comm.Barrier()
        client.close()
        if world.rank == 0:
            print(json.dumps(asdict(outcome)), flush=True)


def _repeat(world: World, client: SwitchClient, cell: Cell, window: int) -> Outcome:
    message = values(world.rank, 0, cell.nbytes // 4)
    total = np.empty_like(message)
    seconds, sent, resent = [], 0, 0
    for iteration in range(cell.iterations + 1):  # the first one warms up
        world.comm.Barrier()
        started = time.perf_counter()
        client.reduce(
            message.view(np.uint8), total.view(np.uint8), packets.FLOAT32, iteration + 1, 0,
            deadline=_DEADLINE_S, check=lambda: None,
        )  # fmt: skip
        elapsed = world.largest(time.perf_counter() - started)
        if iteration:
            seconds.append(elapsed)
            sent += client.sent
            resent += client.resent
    digest = hashlib.sha256(total.data).hexdigest()[:16]
    digests = set(world.comm.allgather(digest))
    sent, resent = (world.comm.allreduce(number) / cell.iterations for number in (sent, resent))
    return Outcome(window, tuple(seconds), sent, resent, digest if len(digests) == 1 else "unlike")


def main() -> int:
    """Launch the ranks, or be one of them."""
    import os

    from ..beside import SWITCH_VARIABLE
    from ..launch import under_launcher

    request: dict[str, Any] = json.loads(sys.argv[1])
    cell = Cell(**{**request["cell"], "windows": tuple(request["cell"]["windows"])})
    try:
        if not under_launcher():
            return _start(cell, request["mpi"])
        _run(World.here(), cell, os.environ[SWITCH_VARIABLE])
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
