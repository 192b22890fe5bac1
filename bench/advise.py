"""``collcomp advise``: measure this machine, or this cluster, and print what would win at each size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from collcomp.advice import advice
from collcomp.policies import Auto

from .arguments import parse_sizes
from .calibrate import add_what, measured, on_ranks, parse_collectives
from .ranks import World

__all__ = ["add_options", "run"]


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
                print(f"# {collective} of float32 among {world.size} ranks; predicted from what was measured")
                print(advice(policy, collective, sizes))
                below = policy.native_below(collective)
                print(f'# codec="{options.codec}" leaves messages of fewer than {below} bytes to MPI')
        return 0

    return on_ranks("advise", argv, options, body)
