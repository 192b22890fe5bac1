"""``collcomp bench auto``: ``codec="auto"`` against native MPI, and against the best fixed choice.

At each size native MPI, `Auto` and every way that it may choose are measured in one run, in an order drawn anew for
each iteration. What was predicted stands beside what was measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from collcomp.codecs import as_codec
from collcomp.collectives import NATIVE
from collcomp.planner.cost import NATIVE_CODEC
from collcomp.policies import Auto

from .arguments import check_file, parse_sizes
from .calibrate import on_ranks
from .osu.message import ITEMSIZE, values
from .ranks import World, progress_bar, show
from .table import Column, header, line, number, write_rows

__all__ = ["add_options", "run"]

_SPEC = "auto:error=0.01"
_SIZES = "8:64M:8,64M"
# Seconds for one size, and the fewest and the most iterations in them.
_SECONDS = 6.0
_FEWEST, _MOST = 7, 4000
# A fixed way that takes so many times as long as native MPI is not the best one: it is left out after a first look.
_HOPELESS = 2.0
_LOOKS, _SMALL_LOOKS = 3, 25
_SMALL_NBYTES = 1 << 17


@dataclass(frozen=True)
class Row:
    """One size.

    Attributes
    ----------
    link : str
    ranks, nbytes : int
    native, auto, best : float
        Seconds: medians over iterations of the slowest rank. `best` is the fastest of native MPI and the fixed ways.
    chosen, best_way : str
        Algorithm and codec.
    against_native, against_best : float
        Speed of `auto` over theirs: medians over the iterations' own ratios.
    ways : dict of str to float
        Seconds of every fixed way; those that took far longer than native MPI were measured a few times only.
    predicted : dict of str to float
        Seconds that were predicted for them.
    iterations : int
    """

    link: str
    ranks: int
    nbytes: int
    native: float
    auto: float
    best: float
    chosen: str
    best_way: str
    against_native: float
    against_best: float
    ways: dict[str, float]
    predicted: dict[str, float]
    iterations: int


_COLUMNS = [
    Column("size", lambda row: str(row.nbytes), 9),
    Column("native", lambda row: number(row.native * 1e6), 11),
    Column("auto", lambda row: number(row.auto * 1e6), 11),
    Column("chosen", lambda row: row.chosen, 22, left=True),
    Column("to native", lambda row: number(row.against_native, 3)),
    Column("best", lambda row: number(row.best * 1e6), 11),
    Column("best way", lambda row: row.best_way, 22, left=True),
    Column("to best", lambda row: number(row.against_best, 3)),
    Column("error", lambda row: _percent(_errors([row]))),
]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--codec", default=_SPEC, help="auto, auto:error=E or auto:CODEC|CODEC (default: %(default)s)")
    parser.add_argument("--sizes", default=_SIZES, help="as of other benchmarks (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="at each size (default: for some seconds)")


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure; the exit status."""
    Auto.from_spec(options.codec)
    sizes = parse_sizes(options.sizes)
    check_file(options.json, "--json")
    if options.iterations is not None and options.iterations < 1:
        raise ValueError(f"--iterations: {options.iterations} is too few, 1 at least")

    def body(world: World) -> int:
        rows = _tabulate(world, options.codec, sizes, options.iterations)
        if world.rank == 0 and options.json:
            write_rows(options.json, rows)
        return 0

    return on_ranks("auto", argv, options, body)


def _tabulate(world: World, spec: str, sizes: Sequence[int], iterations: int | None) -> list[Row]:
    rows = []
    with progress_bar(world, len(sizes), "auto") as bar:
        facts = f"# {spec} among {world.size} ranks, {world.mpi_version}, link {world.link}, allreduce of float32"
        for text in (
            facts,
            "# times in microseconds, medians of the slowest rank; to native, to best: auto's speed over theirs",
            "# error: median difference between predicted and measured times of all ways at this size",
            header(_COLUMNS),
        ):
            show(bar, text)
        for row in _measure(world, spec, sizes, iterations):
            rows.append(row)
            show(bar, line(_COLUMNS, row))
            bar.update(1)
        show(bar, f"# worst against native {_worst(rows, 'against_native')}")
        show(bar, f"# worst against the best fixed choice {_worst(rows, 'against_best')}")
        errors = _errors(rows)
        show(bar, f"# predicted against measured: median error {_percent(errors)} over {len(errors)} cells")
    return rows


def _worst(rows: Sequence[Row], attribute: str) -> str:
    row = min(rows, key=lambda row: getattr(row, attribute))
    return f"{getattr(row, attribute):.3f} at {row.nbytes} bytes"


def _errors(rows: Sequence[Row]) -> list[float]:
    return [abs(row.predicted[way] / seconds - 1) for row in rows for way, seconds in row.ways.items()]


def _percent(errors: Sequence[float]) -> str:
    return f"{100 * float(np.median(errors)):.1f}%" if errors else "-"


def _measure(world: World, spec: str, sizes: Sequence[int], iterations: int | None) -> Iterator[Row]:
    from collcomp.mpi import Comm

    automatic, fixed = Comm(world.comm, codec=spec), Comm(world.comm)
    out = np.empty(2, np.float32)
    automatic.Allreduce(np.ones(2, np.float32), out)  # measures the communicator
    policy = automatic.policy
    assert isinstance(policy, Auto)
    model = policy.model
    assert model is not None
    kinds = {NATIVE: (NATIVE, NATIVE_CODEC)}
    kinds |= {" ".join(way): way for way in policy.ways("allreduce", model)}
    for nbytes in sizes:
        send = values(world.rank, 0, nbytes // ITEMSIZE)
        recv = np.empty_like(send)
        calls: dict[str, Callable[[], Any]] = {
            NATIVE: partial(world.comm.Allreduce, send, recv),
            "auto": partial(automatic.Allreduce, send, recv),
        }
        for name, (algorithm, codec) in kinds.items():
            if name != NATIVE:
                how: dict[str, Any] = {"codec": as_codec(codec), "algorithm": algorithm}
                calls[name] = partial(fixed.Allreduce, send, recv, **how)
        first = _time(world, calls, _SMALL_LOOKS if nbytes <= _SMALL_NBYTES else _LOOKS)
        chosen = world.comm.bcast(automatic.records[-1])
        first = {name: times[1:] for name, times in first.items()}  # the first calls connect and allocate
        native = float(np.min(first[NATIVE]))
        hopeful = {name: call for name, call in calls.items() if np.min(first[name]) <= _HOPELESS * native}
        hopeful["auto"] = calls["auto"]
        estimate = sum(float(np.median(first[name])) for name in hopeful)
        times = _time(world, hopeful, iterations or int(np.clip(_SECONDS / estimate, _FEWEST, _MOST)))
        medians = {name: float(np.median(of)) for name, of in times.items()}
        best = min((name for name in medians if name != "auto"), key=medians.__getitem__)
        seconds = {name: medians.get(name, float(np.median(first[name]))) for name in calls if name != "auto"}
        way = NATIVE if chosen.algorithm == NATIVE else f"{chosen.algorithm} {chosen.codec}"
        yield Row(
            link=world.link,
            ranks=world.size,
            nbytes=nbytes,
            native=medians[NATIVE],
            auto=medians["auto"],
            best=medians[best],
            chosen=way,
            best_way=best,
            against_native=float(np.median(times[NATIVE] / times["auto"])),
            against_best=float(np.median(times[best] / times["auto"])),
            ways=seconds,
            predicted={name: model.seconds("allreduce", *kinds[name], nbytes) for name in seconds},
            iterations=len(times["auto"]),
        )


def _time(world: World, calls: dict[str, Callable[[], Any]], iterations: int) -> dict[str, np.ndarray]:
    """Seconds of the slowest rank, by call; in each iteration the calls come in another order, alike on all ranks."""
    from mpi4py import MPI

    names = list(calls)
    rng = np.random.default_rng(iterations)
    times = np.empty((len(names), iterations))
    barrier, now = world.comm.Barrier, time.perf_counter
    for i in range(iterations):
        for k in rng.permutation(len(names)).tolist():
            call = calls[names[k]]
            barrier()
            started = now()
            call()
            times[k, i] = now() - started
    world.comm.Allreduce(MPI.IN_PLACE, times, MPI.MAX)
    return dict(zip(names, times, strict=True))
