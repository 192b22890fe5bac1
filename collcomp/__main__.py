"""The command line: ``collcomp run``, ``bench``, ``calibrate``, ``advise``, ...."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import collcomp
from collcomp import plan as planning
from collcomp.errors import CollcompError
from collcomp.switch import command as switch_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["bench"]:  # its options are its own
        from collcomp.bench.cli import main as bench

        return bench(argv[1:])
    if argv[:1] in (["calibrate"], ["advise"]):  # they start ranks, as benchmarks do
        from collcomp.bench.cli import main as bench

        return bench(argv)
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return arguments.command(arguments)
    except KeyboardInterrupt:
        return 130
    except (TypeError, ValueError) as error:
        print(f"collcomp: {error}", file=sys.stderr)
        return 2
    except CollcompError as error:
        print(f"collcomp: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="collcomp", description=collcomp.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=collcomp.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run an unmodified mpi4py program with its collectives compressed")
    run.add_argument("--codec", help="codec of its collectives: int8, int4:block=128, auto, ...; none without it")
    run.add_argument("--min-bytes", default="64K", metavar="SIZE", help="smaller messages stay native (default: 64K)")
    run.add_argument("--report", action="store_true", help="print at the end what each collective sent")
    run.add_argument("-m", dest="module", action="store_true", help="PROGRAM is the name of a module")
    run.add_argument("program", metavar="PROGRAM")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARG")
    run.set_defaults(command=_run)

    commands.add_parser("bench", help="measure: see collcomp bench --help", add_help=False)
    commands.add_parser("calibrate", help="measure ranks, codecs and collectives, and write them down", add_help=False)
    commands.add_parser("advise", help="measure, and print what would win at each size", add_help=False)
    plan = commands.add_parser("plan", help="what a topology promises, and which way to sum is best on it")
    planning.add_options(plan)
    plan.set_defaults(command=planning.run)
    commands.add_parser("codecs", help="list the codecs").set_defaults(command=_codecs)
    switch = commands.add_parser("switch", help="run an aggregating switch that workers reach over UDP")
    switch_command.add_options(switch)
    switch.set_defaults(command=switch_command.run)
    commands.add_parser("info", help="print what this machine has").set_defaults(command=_info)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from collcomp.run import run_program
    from collcomp.units import parse_nbytes

    return run_program(
        arguments.program,
        arguments.arguments,
        module=arguments.module,
        codec=arguments.codec,
        min_nbytes=parse_nbytes(arguments.min_bytes, "--min-bytes"),
        report=arguments.report,
    )


def _codecs(arguments: argparse.Namespace) -> int:
    from collcomp.info import describe_codecs

    print(describe_codecs())
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from collcomp.info import describe_machine

    print(describe_machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
