"""``collcomp bench``: what it can measure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from collcomp.errors import CollcompError

from . import advise as advising
from . import auto as choosing
from . import calibrate as calibrating
from . import torch_backend
from .fabric import command as fabric
from .osu import COLLECTIVES
from .osu import command as osu
from .planning import command as planning
from .ranks import print_once
from .switch import command as switching
from .train import command as training

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, once for all ranks."""

    def error(self, message: str) -> NoReturn:
        print_once(f"{self.prog}: {message}")
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``collcomp bench argv...``; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["codecs"]:  # its options are its own
            from .codecs import main as codecs

            return codecs(argv[1:])
        options = _parser().parse_args(argv)
        return options.run(options, argv[1:])
    except ValueError as error:
        print_once(f"collcomp bench: {error}")
        return 2
    except CollcompError as error:
        print_once(f"collcomp bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="collcomp bench",
        description="Measure, with ranks that this command starts; or as ranks, under mpirun or srun.",
    )
    what = parser.add_subparsers(required=True, metavar="WHAT")
    for name, cls in COLLECTIVES.items():
        collective = what.add_parser(name, help=cls.summary, description=cls.__doc__)
        osu.add_options(collective)
        _add_ranks(collective, "2" if cls.point_to_point else "4", "shm")
        collective.add_argument("--plot", metavar="FILE.png", help="plot time against size")
        collective.set_defaults(run=lambda options, rest, name=name: osu.run(name, options, rest))

    calibrate = what.add_parser("calibrate", help="measure pairs of ranks, codecs and collectives, and write them down")
    calibrating.add_options(calibrate)
    _add_ranks(calibrate, "4", "shm", json=False)
    calibrate.set_defaults(run=calibrating.run)

    advise = what.add_parser("advise", help="measure, and print which codec and algorithm would win at each size")
    advising.add_options(advise)
    _add_ranks(advise, "4", "shm", json=False)
    advise.set_defaults(run=advising.run)

    auto = what.add_parser("auto", help="codec auto against native MPI and against each fixed choice")
    choosing.add_options(auto)
    _add_ranks(auto, "4", "shm")
    auto.set_defaults(run=choosing.run)

    train = what.add_parser("train", help="train a classifier or a transformer with compressed gradients")
    training.add_options(train)
    _add_ranks(train, "4", "200mbit")
    train.add_argument("--plot", metavar="FILE.png", help="plot accuracy, or loss, against time")
    train.set_defaults(run=training.run)

    torch = what.add_parser("torch", help="PyTorch's all_reduce by gloo and by our backend, with codecs and without")
    torch_backend.add_options(torch)
    _add_ranks(torch, "2", "shm")
    torch.set_defaults(run=torch_backend.run)

    switch = what.add_parser(
        "switch", help="sums in an aggregating switch: which are exact, what loss and windows cost"
    )
    switching.add_options(switch)
    _add_ranks(switch, "4; 2 for window", "200mbit; 100mbit for window")
    switch.add_argument("--plot", metavar="FILE.png", help="plot throughput against window")
    switch.set_defaults(run=lambda options, rest: switching.run(options))

    network = what.add_parser("fabric", help="leaves and spines: ring orders, placed flows, a slowed uplink")
    fabric.add_options(network)
    _add_ranks(network, "8; 4 for slow-uplink", "200mbit")
    network.set_defaults(run=fabric.run)

    plans = what.add_parser(
        "planning", help="the simulator against SimGrid, placed flows against hashed ones, time to plan"
    )
    planning.add_options(plans)
    plans.set_defaults(run=lambda options, rest: planning.run(options))

    demo = what.add_parser("demo", help="native MPI against int8, int4 and topk over 200 Mbit/s, in a minute or two")
    demo.set_defaults(run=_demo)

    what.add_parser("codecs", help="encode and decode speed", add_help=False)
    return parser


def _add_ranks(parser: argparse.ArgumentParser, ranks: str, link: str, *, json: bool = True) -> None:
    parser.add_argument("--ranks", type=int, metavar="N", help=f"ranks to start (default: {ranks})")
    parser.add_argument(
        "--link", help=f"shm, or the rate of each rank's link: 200mbit, 1gbit, 2.5gbit, ... (default: {link})"
    )
    parser.add_argument("--mpi", choices=("mpich", "openmpi"), help="insist on this MPI (default: what is installed)")
    if json:
        parser.add_argument("--json", metavar="FILE", help="write all rows")


def _demo(options: argparse.Namespace, argv: Sequence[str]) -> int:
    from .demo import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
