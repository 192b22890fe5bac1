"""What the model of a switch says of real runs, once it knows how long a packet takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from collcomp.errors import CollcompError
from collcomp.switch.model import SwitchModel
from collcomp.switch.network import Link

from ..launch import link_rate
from ..osu.message import values
from ..testbed import burst_nbytes
from .cell import Cell, measure, round_trip

__all__ = ["FEWEST_NBYTES", "Prediction", "predictions"]

# Less passes as the bursts that links let through after a pause, and tells nothing of their rates.
FEWEST_NBYTES = 1 << 20
# Where packets get lost, what the model says is the mean of so many seeds.
_SEEDS = 3


@dataclass(frozen=True)
class Prediction:
    """A run, what it took, and what the model says.

    Attributes
    ----------
    cell : Cell
    window : int
    seconds, predicted_seconds : float
    resent, predicted_resent : float
        Packets sent again by all ranks.

    Where packets get lost, predictions are the mean of a few seeds.
    """

    cell: Cell
    window: int
    seconds: float
    predicted_seconds: float
    resent: float
    predicted_resent: float


def predictions(nbytes: int, iterations: int, mpi: str | None) -> Iterator[Prediction]:
    """Four settings: bound by the links, by the window, by loss, and fast links with two ranks."""
    latency = round_trip(2, mpi) / 2
    base = Cell(4, "200mbit", nbytes, iterations=iterations)
    for cell in (
        base,
        replace(
            base, ranks=2, link="50mbit", windows=(2,), payload_nbytes=1024, nbytes=max(nbytes // 32 * 4, FEWEST_NBYTES)
        ),
        replace(base, loss=0.01),
        replace(base, ranks=2, link="500mbit"),
    ):
        (outcome,) = measure(cell, mpi)
        runs = [_run(cell, latency, seed) for seed in range(_SEEDS if cell.loss else 1)]
        seconds, resent = (fmean(numbers) for numbers in zip(*runs, strict=True))
        yield Prediction(cell, cell.windows[0], outcome.median, seconds, outcome.resent, resent)


def _run(cell: Cell, latency: float, seed: int) -> tuple[float, int]:
    """Seconds and repeats of the second call, as real runs have a call before those that count."""
    rate = link_rate(cell.link)
    assert rate is not None
    link = Link(rate=rate, burst_nbytes=burst_nbytes(rate), latency=latency, loss=cell.loss)
    model = SwitchModel(
        cell.ranks, up=link, down=link, window=cell.windows[0], payload_nbytes=cell.payload_nbytes, seed=seed
    )
    operands = [values(rank, 0, cell.nbytes // 4) for rank in range(cell.ranks)]
    model.allreduce(operands)
    outcome = model.allreduce(operands)
    for result in outcome.results:
        if not isinstance(result, np.ndarray):
            raise CollcompError(f"the model failed: {result}")
    return outcome.seconds, outcome.resent
