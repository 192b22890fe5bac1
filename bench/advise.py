"""``collcomp advise``: measure this machine, or this cluster, and print what would win at each size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from collcomp.collectives import NATIVE
from collcomp.planner.cost import CostModel
from collcomp.policies import Auto, Call
from collcomp.policies.auto import Choice

from .arguments import parse_sizes
from .calibrate import add_what, measured, parse_collectives
from .ranks import World, launch_or_run
from .table import bytes_text

__all__ = ["add_options", "advice", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_what(parser)
    parser.add_argument("--sizes", default="1K:64M:4", help="as of the benchmarks (default: %(default)s)")


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure and print; the exit status."""
    collectives = parse_collectives(options.collectives)
    sizes = parse_sizes(options.sizes)
    policy = Auto.from_spec(options.codec)

    def body(world: World) -> int:
        policy.learn(measured(world, options.codec, collectives))
        if world.rank == 0:
            for collective in collectives:
                print(advice(policy, collective, sizes))
        return 0

    return launch_or_run(
        ["advise", *argv],
        body,
        ranks=options.ranks,
        default_ranks=4,
        link=options.link,
        default_link="shm",
        mpi=options.mpi,
    )


def advice(policy: Auto, collective: str, sizes: Sequence[int]) -> str:
    """A table of the fastest ways by size, predicted for float32 sums."""
    model = policy.model
    assert isinstance(model, CostModel)
    lines = [
        f"# {collective} of float32 among {model.size} ranks; predicted from what was measured",
        f"{'size':>10}  {'native':>10}  {'fastest':<24}{'time':>10}{'faster':>8}  next",
    ]
    for nbytes in sizes:
        choices = policy.choices(Call(collective, nbytes, np.dtype(np.float32), "sum", model.size))
        native = next(choice for choice in choices if choice.plan.algorithm == NATIVE)
        best, *others = choices
        lines.append(
            f"{bytes_text(nbytes):>10}  {_time(native.seconds):>10}  {_way(best):<24}{_time(best.seconds):>10}"
            f"{native.seconds / best.seconds:>7.2f}x  {_way(others[0])} ({_time(others[0].seconds)})"
        )
    below = policy.native_below(collective)
    lines.append(f'# codec="auto" leaves messages of fewer than {below} bytes to MPI')
    return "\n".join(lines)


def _way(choice: Choice) -> str:
    return NATIVE if choice.plan.algorithm == NATIVE else f"{choice.plan.algorithm} {choice.codec}"


def _time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"
