"""``collcomp bench switch``: options and tables of its experiments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from collcomp.kernels.cpu.packets import HEADER_NBYTES
from collcomp.units import bytes_text, parse_nbytes

from ..arguments import check_file
from ..launch import link_rate
from ..table import Column, number, tabulate, write_rows
from ..testbed import PACKET_HEADERS_NBYTES
from .cell import Cell, Outcome, measure, round_trip
from .exactness import Share, shares
from .prediction import FEWEST_NBYTES, Prediction, predictions

__all__ = ["add_options", "run"]

_LOSSES = (0.0, 0.0001, 0.001, 0.01, 0.1)
_WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
# Small packets, of which a link of modest rate holds a few: of large ones one is enough.
_WINDOW_PAYLOAD = 256


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "experiment", choices=_EXPERIMENTS, help="; ".join(f"{k}: {v.summary}" for k, v in _EXPERIMENTS.items())
    )
    parser.add_argument("--size", help="message of each rank, float32 (default: 16M, 4M for window)")
    parser.add_argument("--iterations", type=int, help="of each cell (default: 3)")


def run(options: argparse.Namespace) -> int:
    """Run an experiment; the exit status."""
    experiment = _EXPERIMENTS[options.experiment]
    for name in ("ranks", "link", "mpi", "size", "iterations", "plot"):
        if getattr(options, name) is None:
            setattr(options, name, experiment.takes.get(name))
        elif name not in experiment.takes:
            raise ValueError(f"--{name}: {options.experiment!r} has no use for it")
    check_file(options.json, "--json")
    check_file(options.plot, "--plot")
    for name, fewest in (("ranks", 2), ("iterations", 1)):
        given = getattr(options, name)
        if given is not None and given < fewest:
            raise ValueError(f"--{name}: {given} is too few, {fewest} at least")
    rows = experiment.run(options)
    if options.json:
        write_rows(options.json, rows)
    return 0


def _cell(options: argparse.Namespace, **more: Any) -> Cell:
    link_rate(options.link)
    cell = Cell(options.ranks, options.link, _nbytes(options), iterations=options.iterations, **more)
    if cell.nbytes < cell.payload_nbytes:
        raise ValueError(f"--size: {options.size} is less than a packet of {cell.payload_nbytes} bytes")
    return cell


def _nbytes(options: argparse.Namespace) -> int:
    nbytes = parse_nbytes(options.size, "--size")
    return nbytes - nbytes % 4


# ---------------------------------------------------------------------- exactness


def _exactness(options: argparse.Namespace) -> list[Share]:
    rows = shares((2, 8, 32) if options.ranks is None else (options.ranks,))
    columns = [
        Column("summed by", lambda row: row.how, 16, left=True),
        Column("ranks", lambda row: str(row.ranks)),
        Column("correctly rounded", lambda row: f"{100 * row.share:.1f}%"),
        Column("largest error, ulp", lambda row: number(row.largest_ulps, 1)),
    ]
    return tabulate(columns, rows, "# sums of Student-t (3 degrees of freedom) values x 0.01, float32")


# ---------------------------------------------------------------------- loss


@dataclass(frozen=True)
class _Lossy:
    """A row of the table by loss."""

    loss: float
    seconds: float
    spread: float
    bound_seconds: float | None
    resent: float
    sent: float
    digest: str


def _loss(options: argparse.Namespace) -> list[_Lossy]:
    cell = _cell(options)
    rate = link_rate(cell.link)

    def rows() -> Iterable[_Lossy]:
        for loss in _LOSSES:
            (outcome,) = measure(_cell(options, loss=loss), options.mpi)
            yield _Lossy(
                loss, outcome.median, max(outcome.seconds) / min(outcome.seconds), rate and cell.nbytes / rate,
                outcome.resent, outcome.sent, outcome.digest,
            )  # fmt: skip

    columns = [
        Column("loss, each way", lambda row: f"{100 * row.loss:g}%"),
        Column("time, ms", lambda row: number(row.seconds * 1e3, 1), 9),
        Column("x bound", lambda row: number(row.bound_seconds and row.seconds / row.bound_seconds)),
        Column("max/min", lambda row: number(row.spread)),
        Column("sent", lambda row: number(row.sent, 0), 8),
        Column("sent again", lambda row: number(row.resent, 0)),
        Column("bits of the sums", lambda row: row.digest, left=True),
    ]
    return tabulate(columns, rows(), _facts(cell))


def _facts(cell: Cell) -> str:
    return (
        f"# {cell.ranks} ranks, link {cell.link}, {bytes_text(cell.nbytes)} of float32 each, packets of "
        f"{cell.payload_nbytes} bytes, {cell.iterations} iterations"
    )


# ---------------------------------------------------------------------- window


@dataclass(frozen=True)
class Throughput:
    """A row of the table by window.

    Attributes
    ----------
    window : int
        Packets under way.
    bytes_per_second : float
        Of values, through each rank's link.
    expected : float
        What bandwidth and round-trip time let through. The latter is a small packet's: a token bucket that is not
        empty passes all packets at once, so their length makes no difference until the link is full.
    """

    window: int
    seconds: float
    bytes_per_second: float
    expected: float


def _window(options: argparse.Namespace) -> list[Throughput]:
    cell = _cell(options, windows=_WINDOWS, payload_nbytes=_WINDOW_PAYLOAD)
    rate = link_rate(cell.link)
    if rate is None:
        raise ValueError("--link: shm has no rate that a window could fill")
    trip = round_trip(cell.ranks, options.mpi)
    rows = [_throughput(outcome, trip, cell, rate) for outcome in measure(cell, options.mpi)]
    columns = [
        Column("window", lambda row: str(row.window)),
        Column("time, ms", lambda row: number(row.seconds * 1e3, 1), 9),
        Column("MB/s", lambda row: number(row.bytes_per_second / 1e6)),
        Column("expected", lambda row: number(row.expected / 1e6)),
    ]
    enough = rate * trip / _packet_nbytes(cell)
    tabulate(
        columns, rows, _facts(cell),
        f"# round trip {trip * 1e6:.0f} us of a small packet alone: {enough:.1f} packets under way fill the link",
    )  # fmt: skip
    if options.plot:
        from ..plot import plot_windows

        plot_windows(rows, enough, f"{cell.ranks} ranks, link {cell.link}", options.plot)
    return rows


def _packet_nbytes(cell: Cell) -> int:
    return cell.payload_nbytes + HEADER_NBYTES + PACKET_HEADERS_NBYTES


def _throughput(outcome: Outcome, trip: float, cell: Cell, rate: float) -> Throughput:
    full = rate * cell.payload_nbytes / _packet_nbytes(cell)
    expected = min(outcome.window * cell.payload_nbytes / trip, full)
    return Throughput(outcome.window, outcome.median, cell.nbytes / outcome.median, expected)


# ---------------------------------------------------------------------- model


def _model(options: argparse.Namespace) -> list[Prediction]:
    nbytes = _nbytes(options)
    if nbytes < FEWEST_NBYTES:
        raise ValueError(
            f"--size: {options.size} is too small for links to matter, {bytes_text(FEWEST_NBYTES)} at least"
        )
    columns = [
        Column("ranks", lambda row: str(row.cell.ranks)),
        Column("link", lambda row: row.cell.link, 8, left=True),
        Column("size", lambda row: bytes_text(row.cell.nbytes), 8),
        Column("packet", lambda row: str(row.cell.payload_nbytes)),
        Column("window", lambda row: str(row.window)),
        Column("loss", lambda row: f"{100 * row.cell.loss:g}%"),
        Column("measured, ms", lambda row: number(row.seconds * 1e3, 1)),
        Column("model, ms", lambda row: number(row.predicted_seconds * 1e3, 1)),
        Column("model / measured", lambda row: number(row.predicted_seconds / row.seconds)),
        Column("sent again", lambda row: number(row.resent, 0)),
        Column("model", lambda row: number(row.predicted_resent, 0)),
    ]
    rows = predictions(nbytes, options.iterations, options.mpi)
    return tabulate(columns, rows, "# the model knows the links, and the time of a packet alone under way")


@dataclass(frozen=True)
class _Experiment:
    """An experiment, and the defaults of those options that it takes."""

    summary: str
    run: Callable[[argparse.Namespace], list[Any]]
    takes: dict[str, Any]


_RUN = {"ranks": 4, "link": "200mbit", "mpi": None, "size": "16M", "iterations": 3}

_EXPERIMENTS = {
    "exactness": _Experiment("which sums are correctly rounded", _exactness, {"ranks": None}),
    "loss": _Experiment("time and repeats when packets get lost", _loss, _RUN),
    "model": _Experiment(
        "real runs beside the model's prediction", _model, {"mpi": None, "size": "16M", "iterations": 3}
    ),
    # Modest enough for a machine of two cores to fill the link.
    "window": _Experiment(
        "throughput by packets under way", _window, {**_RUN, "ranks": 2, "link": "100mbit", "size": "4M", "plot": None}
    ),
}
