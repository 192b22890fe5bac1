"""``collcomp bench torch``: PyTorch's `all_reduce` by gloo and by our backend, with codecs and without."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arguments import NO_CODEC, check_file, parse_codecs, parse_sizes
from .process_group import gloo, require_torch
from .ranks import World, launch_or_run, progress_bar, show
from .table import Column, header, line, number, write_rows

__all__ = ["Row", "add_options", "run"]

_GLOO = "gloo"
_ITEMSIZE = 4
_CELL_SECONDS = 2.0
_FEWEST_ITERATIONS, _MOST_ITERATIONS = 5, 2000
_WARMUP = 5


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    method : str
        ``"gloo"``, or what the backend ``"collcomp"`` did: ``"none"`` or a codec's spec.
    ranks : int
    link : str
    nbytes : int
        Of the vector of float32 that is summed.
    seconds, seconds_low, seconds_high : float
        Median and quartiles over iterations of the slowest rank.
    ratio : float
        Median over iterations of the time over gloo's in the same iteration.
    iterations : int
    algbw, busbw : float
        Bytes per second, as in nccl-tests.
    """

    method: str
    ranks: int
    link: str
    nbytes: int
    seconds: float
    seconds_low: float
    seconds_high: float
    ratio: float
    iterations: int
    algbw: float
    busbw: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options beside those of all benchmarks."""
    parser.add_argument(
        "--sizes", default="64K:64M:4", help="FIRST:LAST:FACTOR, FIRST:LAST or a list (default: %(default)s)"
    )
    parser.add_argument("--codec", default="none,int8,int4", help="codecs between commas (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="at each size (default: for some seconds)")


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure and print a table; the exit status."""
    codecs = [NO_CODEC if codec is None else codec.spec for codec in parse_codecs(options.codec)]
    sizes = parse_sizes(options.sizes)
    if options.iterations is not None and options.iterations < 1:
        raise ValueError(f"--iterations: {options.iterations} is too few, 1 at least")
    check_file(options.json, "--json")
    require_torch("bench torch")

    def body(world: World) -> int:
        rows = _tabulate(world, codecs, sizes, options.iterations)
        if options.json and world.rank == 0:
            write_rows(options.json, rows)
        return 0

    return launch_or_run(
        ["torch", *argv],
        body,
        ranks=options.ranks,
        default_ranks=2,
        link=options.link,
        default_link="shm",
        mpi=options.mpi,
    )


def _tabulate(world: World, codecs: Sequence[str], sizes: Sequence[int], iterations: int | None) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    columns = _columns(max(map(len, (_GLOO, *codecs))))
    rows = []
    with gloo(world), progress_bar(world, len(sizes), "torch") as bar:
        show(bar, f"# all_reduce of float32, PyTorch {torch.__version__}, {world.size} ranks, link {world.link}")
        show(bar, "# times in microseconds, of the slowest rank; time / gloo: median over iterations, in each of which")
        show(bar, "# all take their turn, in changing order; bandwidths in MB/s")
        show(bar, header(columns))
        for row in _measure(world, codecs, sizes, iterations, bar):
            rows.append(row)
            show(bar, line(columns, row))
    return rows


def _measure(
    world: World, codecs: Sequence[str], sizes: Sequence[int], iterations: int | None, bar: Any
) -> Iterator[Row]:
    import torch
    import torch.distributed as dist
    from mpi4py import MPI

    from collcomp.torch import use_codec

    ours = dist.new_group(backend="collcomp")
    methods = [_GLOO, *codecs]

    def seconds(method: str, source: torch.Tensor, tensor: torch.Tensor) -> float:
        tensor.copy_(source)  # sums of sums would overflow
        group = None if method == _GLOO else ours
        scope = nullcontext() if method in (_GLOO, NO_CODEC) else use_codec(method, group=ours, min_nbytes=0)
        with scope:
            dist.barrier(group=group)  # over the connections that are measured, so that both are as warm
            started = time.perf_counter()
            dist.all_reduce(tensor, group=group)
            return time.perf_counter() - started

    for nbytes in sizes:
        source = torch.randn(nbytes // _ITEMSIZE, generator=torch.Generator().manual_seed(world.rank))
        tensor = torch.empty_like(source)
        first = [min(seconds(method, source, tensor) for _ in range(_WARMUP)) for method in methods]
        estimate = world.largest(sum(first))
        count = iterations or int(
            np.clip(_CELL_SECONDS * len(methods) / estimate, _FEWEST_ITERATIONS, _MOST_ITERATIONS)
        )
        times = np.empty((len(methods), count))
        for i in range(count):
            for k in range(len(methods)):
                turn = (i + k) % len(methods)
                times[turn, i] = seconds(methods[turn], source, tensor)
        world.comm.Allreduce(MPI.IN_PLACE, times, MPI.MAX)
        bar.update()
        for method, mine in zip(methods, times, strict=True):
            low, median, high = (float(np.quantile(mine, q)) for q in (0.25, 0.5, 0.75))
            yield Row(
                method=method,
                ranks=world.size,
                link=world.link,
                nbytes=nbytes,
                seconds=median,
                seconds_low=low,
                seconds_high=high,
                ratio=float(np.median(mine / times[0])),
                iterations=count,
                algbw=nbytes / median,
                busbw=nbytes / median * 2 * (world.size - 1) / world.size,
            )


def _columns(widest: int) -> list[Column]:
    return [
        Column("size", lambda row: str(row.nbytes), 9),
        Column("backend, codec", lambda row: row.method, widest, left=True),
        Column("median", lambda row: number(row.seconds * 1e6, 1), 11),
        Column("quartiles", lambda row: f"{row.seconds_low * 1e6:.1f} {row.seconds_high * 1e6:.1f}", 19),
        Column("algbw", lambda row: number(row.algbw / 1e6), 9),
        Column("busbw", lambda row: number(row.busbw / 1e6), 9),
        Column("time / gloo", lambda row: number(row.ratio, 3)),
    ]
