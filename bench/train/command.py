"""``collcomp bench train``: options, and files around the tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from ..arguments import TORCH_HOOKS, check_file, parse_codecs, parse_methods
from ..process_group import require_torch
from ..ranks import World, launch_or_run
from ..table import write_rows

__all__ = ["add_options", "run"]

_DIGITS_CODECS = "none,bf16,int8,int4:feedback,topk:ratio=0.01,feedback"
_GPT_CODECS = (
    "none,torch:fp16,torch:powersgd,bf16,int8,int4:feedback,loco,topk:ratio=0.01,feedback,"
    "powersgd:rank=8,feedback,thc:feedback"
)
_QUICK_CODECS = "none,torch:powersgd,int8,int4:feedback,powersgd:rank=8,feedback"
_SEEDS, _EPOCHS, _STEPS = 3, 12, 240
_QUICK_SEEDS, _QUICK_STEPS = 1, 60


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options beside those of all benchmarks."""
    parser.add_argument(
        "--model", choices=("digits", "gpt"), default="digits",
        help="a classifier of digits in NumPy over MPI, or a GPT in PyTorch over DDP's hooks (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--codec",
        help=f"codecs between commas; with --model gpt also PyTorch's own hooks, {', '.join(TORCH_HOOKS)} "
        f"(default: {_DIGITS_CODECS}; gpt: {_GPT_CODECS})",
    )
    parser.add_argument("--seeds", type=int, help=f"runs of each codec (default: {_SEEDS})")
    parser.add_argument("--epochs", type=int, help=f"passes over the digits (default: {_EPOCHS})")
    parser.add_argument("--steps", type=int, help=f"of the gpt (default: {_STEPS})")
    parser.add_argument(
        "--quick", action="store_true",
        help=f"gpt in 3 minutes: fewer codecs, {_QUICK_SEEDS} seed, {_QUICK_STEPS} steps, where you do not say",
    )  # fmt: skip


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Train with each codec and each seed and print a table; the exit status."""
    for option, value in (
        ("--seeds", options.seeds),
        ("--epochs", options.epochs),
        ("--steps", options.steps),
        ("--ranks", options.ranks),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{option}: {value} is too few, 1 at least")
    check_file(options.json, "--json")
    check_file(options.plot, "--plot")
    return launch_or_run(
        ["train", *argv],
        _gpt(options) if options.model == "gpt" else _digits(options),
        ranks=options.ranks,
        default_ranks=4,
        link=options.link,
        default_link="200mbit",
        mpi=options.mpi,
    )


def _digits(options: argparse.Namespace) -> Callable[[World], int]:
    for option, value in (("--steps", options.steps), ("--quick", options.quick)):
        if value:
            raise ValueError(f"{option} is for --model gpt")
    codecs = parse_codecs(options.codec or _DIGITS_CODECS)

    def body(world: World) -> int:
        from .digits import tabulate

        results = tabulate(world, codecs, options.seeds or _SEEDS, options.epochs or _EPOCHS)
        if world.rank == 0:
            if options.json:
                write_rows(options.json, results)
            if options.plot:
                from ..plot import plot_training

                plot_training(results, options.plot)
        return 0

    return body


def _gpt(options: argparse.Namespace) -> Callable[[World], int]:
    if options.epochs:
        raise ValueError("--epochs is for --model digits; give --steps")
    methods = parse_methods(options.codec or (_QUICK_CODECS if options.quick else _GPT_CODECS))
    seeds = options.seeds or (_QUICK_SEEDS if options.quick else _SEEDS)
    steps = options.steps or (_QUICK_STEPS if options.quick else _STEPS)
    require_torch("--model gpt")

    def body(world: World) -> int:
        from .comparison import tabulate

        results = tabulate(world, methods, seeds, steps, options.json)
        if world.rank == 0 and options.plot:
            from ..plot import plot_losses

            plot_losses(results, options.plot)
        return 0

    return body
