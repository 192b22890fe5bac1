"""``collcomp bench fabric``: options and tables of its experiments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from collcomp.units import bytes_text, parse_nbytes

from ..arguments import check_file
from ..launch import link_rate, under_launcher
from ..ranks import World, launch_or_run
from ..table import Column, header, line, number, write_rows
from .jobs import JOBS, Shared, shared
from .order import orders
from .slow_uplink import splits
from .spec import TwoTier

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "experiment", choices=_EXPERIMENTS, help="; ".join(f"{k}: {v.summary}" for k, v in _EXPERIMENTS.items())
    )
    parser.add_argument("--fabric", metavar="SPEC", help="leaves and spines (default: each experiment's own)")
    parser.add_argument("--size", help="message of each rank, float32 (default: each experiment's own)")
    parser.add_argument("--iterations", type=int, help="of each row (default: 3)")
    parser.add_argument("--draws", type=int, help="connections that jobs draw hashes with (default: 8)")


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Run an experiment; the exit status."""
    experiment = _EXPERIMENTS[options.experiment]
    ranks = options.ranks or experiment.ranks
    if under_launcher():
        ranks = World.here().size
    fabric = options.fabric or experiment.fabric
    nbytes = parse_nbytes(options.size or experiment.size, "--size") & ~3
    iterations = 3 if options.iterations is None else options.iterations
    draws = 8 if options.draws is None else options.draws
    if options.draws is not None and experiment is not _EXPERIMENTS["jobs"]:
        raise ValueError(f"--draws: {options.experiment!r} has no use for it")
    for name, given, fewest in (("size", nbytes, 4 * ranks), ("iterations", iterations, 1), ("draws", draws, 1)):
        if given < fewest:
            raise ValueError(f"--{name}: {given} is too few, {fewest} at least")
    if link_rate(options.link or experiment.link) is None:
        raise ValueError("--link: shm leads to no leaf")
    _check(TwoTier.parse(fabric), ranks, experiment)
    check_file(options.json, "--json")

    def body(world: World) -> int:
        rows = []
        for text in (*_facts(world, nbytes, iterations), header(experiment.columns)):
            _print(world, text)
        for row in experiment.rows(world, nbytes, iterations, draws):
            rows.append(row)
            _print(world, line(experiment.columns, row))
        for text in experiment.conclusion(rows):
            _print(world, text)
        if world.rank == 0 and options.json:
            write_rows(options.json, rows)
        return 0

    return launch_or_run(
        ["fabric", *argv],
        body,
        ranks=options.ranks,
        default_ranks=experiment.ranks,
        link=options.link,
        default_link=experiment.link,
        mpi=options.mpi,
        fabric=fabric,
    )


def _check(fabric: TwoTier, ranks: int, experiment: _Experiment) -> None:
    if len(fabric.groups(ranks)) < 2:
        raise ValueError(f"--ranks: {ranks} do not need the spines, they are at one leaf")
    if fabric.spines < experiment.spines:
        raise ValueError(f"--fabric: {fabric.spines} spines are too few, {experiment.spines} at least")
    if experiment.multiple > 1 and fabric.place != "block":
        raise ValueError(f"--fabric: place={fabric.place} does not leave jobs side by side")
    if ranks % experiment.multiple:
        raise ValueError(f"--ranks: {ranks} is no multiple of {experiment.multiple}")


def _facts(world: World, nbytes: int, iterations: int) -> list[str]:
    return [
        f"# {world.size} ranks, link {world.link}, {world.fabric}",
        f"# allreduce of {bytes_text(nbytes)} of float32 each, identity codec, over TCP; median of {iterations}, "
        "results checked",
    ]


def _print(world: World, text: str) -> None:
    if world.rank == 0:
        print(text, flush=True)


def _milliseconds(title: str, seconds: Callable[[Any], float]) -> Column:
    return Column(title, lambda row: number(seconds(row) * 1e3, 1), 8)


def _of_job(job: int) -> Column:
    return _milliseconds(f"job {job + 1}, ms", lambda row: row.seconds[job])


def _mean_of_draws(rows: Sequence[Shared]) -> list[str]:
    hashed = [row.times for row in rows[1:]]
    return [f"# hashed over placed: {fmean(hashed):.2f} in the mean of {len(hashed)} draws, {min(hashed):.2f} to "
            f"{max(hashed):.2f}"]  # fmt: skip


@dataclass(frozen=True)
class _Experiment:
    """An experiment, and its defaults: a network in which two cores keep up with the links."""

    summary: str
    rows: Callable[[World, int, int, int], Iterator[Any]]
    columns: list[Column]
    ranks: int
    link: str
    fabric: str
    size: str
    spines: int = 1
    #: What the number of ranks has to be a multiple of.
    multiple: int = 1
    conclusion: Callable[[Sequence[Any]], list[str]] = lambda rows: []


_EXPERIMENTS = {
    "order": _Experiment(
        "rings in rank order and in planned order over scarce uplinks",
        lambda world, nbytes, iterations, draws: orders(world, nbytes, iterations),
        [
            Column("allreduce", lambda row: row.how, 28, left=True),
            _milliseconds("time, ms", lambda row: row.seconds),
            Column("speed-up", lambda row: number(row.times)),
            Column("uplinks, MB", lambda row: number(row.crossed / 1e6, 1)),
            _milliseconds("their bound, ms", lambda row: row.bound_seconds),
        ],
        ranks=8,
        link="200mbit",
        fabric="leaves=2,spines=1,uplink=200mbit,place=interleaved",
        size="8M",
    ),
    "jobs": _Experiment(
        "two jobs at once, their flows placed on spines or hashed",
        shared,
        [
            Column("flows", lambda row: row.how, 22, left=True),
            *(_of_job(job) for job in range(JOBS)),
            _milliseconds("slower, ms", lambda row: row.slower),
            Column("over placed", lambda row: number(row.times)),
            Column("busiest uplink", lambda row: f"{100 * row.busiest:.0f}%"),
        ],
        ranks=8,
        link="200mbit",
        fabric="leaves=2,spines=2,uplink=200mbit",
        size="8M",
        spines=JOBS,
        multiple=2 * JOBS,
        conclusion=_mean_of_draws,
    ),
    "slow-uplink": _Experiment(
        "one uplink slowed by half: even shares, known rates, measured rates",
        lambda world, nbytes, iterations, draws: splits(world, nbytes, iterations),
        [
            Column("uplinks", lambda row: row.how, 30, left=True),
            _milliseconds("time, ms", lambda row: row.seconds),
            _milliseconds("optimum, ms", lambda row: row.optimum_seconds),
            Column("excess", lambda row: f"{100 * row.excess:.1f}%"),
            Column("shares of the slowed leaf", lambda row: " / ".join(f"{100 * x:.1f}%" for x in row.shares)),
        ],
        ranks=4,
        link="200mbit",
        fabric="leaves=2,spines=2,uplink=80mbit",
        size="32M",
        spines=2,
    ),
}
