"""``collcomp bench planning``: options and tables of its experiments."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..arguments import check_file
from ..table import Column, number, tabulate, write_rows
from . import c4p, reference, scale

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "experiment", choices=_EXPERIMENTS, help="; ".join(f"{k}: {v.summary}" for k, v in _EXPERIMENTS.items())
    )
    parser.add_argument("--seeds", type=int, help="random instances (default: 200 for simgrid, 10 for c4p)")
    parser.add_argument("--nics", help="numbers of network cards for scale (default: 16,64,512,4096)")
    parser.add_argument("--json", metavar="FILE", help="write all rows")


def run(options: argparse.Namespace) -> int:
    """Run an experiment; the exit status."""
    experiment = _EXPERIMENTS[options.experiment]
    for name in ("seeds", "nics"):
        if getattr(options, name) is None:
            setattr(options, name, experiment.takes.get(name))
        elif name not in experiment.takes:
            raise ValueError(f"--{name}: {options.experiment!r} has no use for it")
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"--seeds: {options.seeds} is too few, 1 at least")
    check_file(options.json, "--json")
    rows, status = experiment.run(options)
    if options.json:
        write_rows(options.json, rows)
    return status


def _progress(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, file=sys.stderr, disable=None, leave=False)


def _simgrid(options: argparse.Namespace) -> tuple[list[reference.Difference], int]:
    rows = []
    python = reference.find_simgrid()
    with _progress(options.seeds) as progress:
        for row in reference.compare(range(options.seeds)):
            rows.append(row)
            progress.update()
    worst = max(rows, key=lambda row: row.relative)
    print(f"# {len(rows)} random instances, {sum(row.transfers for row in rows)} transfers, SimGrid by {python}")
    print(f"# simulated in {sum(row.seconds for row in rows):.1f} s, by SimGrid in "
          f"{sum(row.simgrid_seconds for row in rows):.1f} s with the starts of its processes")  # fmt: skip
    print(f"largest relative difference of a completion time: {worst.relative:.1e}, of seed {worst.seed}")
    return rows, int(worst.relative > _TOLERANCE)


def _c4p(options: argparse.Namespace) -> tuple[list[c4p.Row], int]:
    columns = [
        Column("bus bandwidth, Gbit/s", lambda row: row.what, 45, left=True),
        Column("QPs a port", lambda row: str(row.queue_pairs)),
        Column("mean", lambda row: number(row.mean, 1), 6),
        Column("min-max", lambda row: f"{row.least:.0f}-{row.most:.0f}", 8),
        Column("network's bound", lambda row: number(row.bound, 1)),
        Column("C4P's authors", lambda row: row.paper, left=True),
    ]
    with _progress(options.seeds * c4p.count_cases()) as progress:
        rows = c4p.rows(options.seeds, progress.update)
        return tabulate(
            columns, rows, f"# simulated: 8 hosts x 8 cards x 2 x 200 Gbit/s, two planes, 1:1; {options.seeds} seeds"
        ), 0  # fmt: skip


def _scale(options: argparse.Namespace) -> tuple[list[scale.Planned], int]:
    try:
        nics = tuple(int(count) for count in options.nics.split(","))
    except ValueError:
        raise ValueError(f"--nics: {options.nics!r} is no list of numbers") from None
    last: list[scale.Planned] = []

    def growth(row: scale.Planned) -> str:
        """The power of the number of cards by which time grew since the row before."""
        before = last[-1] if last else None
        last.append(row)
        if before is None or before.nics == row.nics:
            return "-"
        return number(math.log(row.seconds / before.seconds) / math.log(row.nics / before.nics))

    columns = [
        Column("NICs", lambda row: str(row.nics), 5),
        Column("leaves", lambda row: str(row.leaves)),
        Column("spines", lambda row: str(row.spines)),
        Column("flows", lambda row: str(row.flows)),
        Column("queue pairs", lambda row: str(row.queue_pairs)),
        Column("to place, s", lambda row: number(row.seconds, 3)),
        Column("grew as NICs to the", growth),
        Column("to bound, s", lambda row: number(row.bound_seconds, 3)),
        Column("to order a ring, s", lambda row: number(row.ring_seconds, 3)),
        Column("gap to bound", lambda row: f"{100 * row.gap:.2f}%"),
    ]
    next(scale.planned((16,)))  # imports, and whatever else is done once
    return tabulate(columns, scale.planned(nics), "# eight jobs, a ring each, in random order over all hosts"), 0


@dataclass(frozen=True)
class _Experiment:
    """An experiment, and the defaults of those options that it takes."""

    summary: str
    run: Callable[[argparse.Namespace], tuple[list[Any], int]]
    takes: dict[str, Any]


#: Largest relative difference of completion times that rounding explains.
_TOLERANCE = 1e-9

_EXPERIMENTS = {
    "c4p": _Experiment("placed flows against hashed ones, before and after a link breaks", _c4p, {"seeds": 10}),
    "scale": _Experiment("time to place flows by the size of the network", _scale, {"nics": "16,64,512,4096"}),
    "simgrid": _Experiment("the simulator against SimGrid on random instances", _simgrid, {"seeds": 200}),
}
