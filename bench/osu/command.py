"""``collcomp bench <collective>``: options, table and files around the driver."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from collcomp import devices
from collcomp.collectives import SWITCHED
from collcomp.switch.programs import PROGRAMS

from ..arguments import NO_CODEC, check_file, parse_codecs, parse_sizes
from ..launch import under_launcher
from ..ranks import World, launch_or_run, progress_bar, show
from ..table import Column, header, line, number, write_rows
from . import COLLECTIVES
from .collective import Collective
from .driver import Row, Settings, check_settings, measure
from .message import ITEMSIZE

__all__ = ["add_options", "run"]

_CODECS = "none,int8,int4"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of every collective."""
    parser.add_argument(
        "--sizes", default="64K:16M:4", help="FIRST:LAST:FACTOR, FIRST:LAST or a list (default: %(default)s)"
    )
    parser.add_argument(
        "--codec",
        help=f"codecs between commas; none is native MPI (default: {_CODECS}; none with --algorithm {SWITCHED})",
    )
    parser.add_argument(
        "--algorithm",
        help="direct, ring, hierarchical, gathered, merged, summed or switched (default: each codec's own)",
    )
    parser.add_argument("--program", choices=PROGRAMS, help=f"of the switch, with --algorithm {SWITCHED}")
    parser.add_argument("--loss", type=float, metavar="P", help="share of packets that the switch loses on purpose")
    parser.add_argument(
        "--fabric",
        metavar="SPEC",
        help="leaves and spines that the ranks' links lead into: leaves=2,spines=2,uplink=200mbit, and maybe "
        "place=interleaved",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where buffers lie; ranks share the GPUs that there are (default: cpu)",
    )
    parser.add_argument("--iterations", type=int, help="of each codec at each size (default: for a second or two)")
    parser.add_argument("--warmup", type=int, help="calls before that (default: 10, 2 above 64 KiB)")
    parser.add_argument(
        "--validate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare results with a float64 reference and between ranks (default: on)",
    )


def run(name: str, options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure the collective `name`; the exit status."""
    cls = COLLECTIVES[name]
    codecs = options.codec
    if codecs is None:  # a switch takes neither int8 nor int4
        codecs = NO_CODEC if options.algorithm == SWITCHED else _CODECS
    settings = Settings(
        codecs=tuple(parse_codecs(codecs)),
        sizes=tuple(parse_sizes(options.sizes)),
        algorithm=options.algorithm,
        iterations=options.iterations,
        warmup=options.warmup,
        program=options.program,
        validate=options.validate,
        device=options.device,
    )
    if settings.device == "cuda" and devices.missing():
        raise ValueError(devices.missing())
    switch = _switch_arguments(options)
    default_ranks = 2 if cls.point_to_point else 4
    ranks = World.here().size if under_launcher() else default_ranks
    check_settings(cls, settings, ranks if options.ranks is None else options.ranks)
    check_file(options.json, "--json")
    check_file(options.plot, "--plot")

    def body(world: World) -> int:
        if settings.device == "cuda":
            devices.choose(world.local_rank)
        rows = _tabulate(world, cls, settings)
        if world.rank == 0:
            _save(rows, options)
        return 1 if any(row.wrong for row in rows) else 0

    return launch_or_run(
        [name, *argv],
        body,
        ranks=options.ranks,
        default_ranks=default_ranks,
        link=options.link,
        default_link="shm",
        mpi=options.mpi,
        switch=switch,
        fabric=options.fabric,
    )


def _switch_arguments(options: argparse.Namespace) -> list[str] | None:
    """What `collcomp switch` is given; None where there is to be none."""
    if options.loss is not None and not 0 <= options.loss < 1:
        raise ValueError(f"--loss: {options.loss} is no share of packets, 0 to less than 1")
    given = {"--program": options.program, "--loss": options.loss}
    arguments = [text for option, value in given.items() if value is not None for text in (option, str(value))]
    if options.algorithm == SWITCHED:
        return arguments
    if arguments:
        raise ValueError(f"{arguments[0]}: there is a switch with --algorithm {SWITCHED} only")
    return None


def _tabulate(world: World, cls: type[Collective], settings: Settings) -> list[Row]:
    columns = _columns(settings)
    rows = []
    with progress_bar(world, len(settings.sizes), cls.name) as bar:
        for text in (*_facts(world, cls, settings), header(columns)):
            show(bar, text)
        for row in measure(world, cls, settings, bar):
            rows.append(row)
            show(bar, line(columns, row))
    return rows


def _facts(world: World, cls: type[Collective], settings: Settings) -> list[str]:
    iterations = "for about 1.5 s, 3 or more" if settings.iterations is None else str(settings.iterations)
    checked = "results checked" if settings.validate else "results not checked"
    link = f"{world.link} ({world.fabric})" if world.fabric else world.link
    notes = (cls.__doc__ or "").splitlines()[0]
    return [
        f"# {cls.name}: {cls.summary}; {notes[0].lower()}{notes[1:]}",
        f"# {world.mpi_version}, {world.size} ranks, link {link}, float32, iterations {iterations}, {checked}",
        *([f"# {devices.describe()}"] if settings.device == "cuda" else []),
        "# times in microseconds, of the slowest rank; bandwidths in MB/s; wire: bytes that the busiest rank sends",
    ]


_ROOTED = ("bcast", "gather", "reduce", "scatter")
# What nccl-tests has besides.
_NCCL_TESTS = (
    Column("count", lambda row: str(row.nbytes // ITEMSIZE), 9),
    Column("type", lambda row: "float", left=True),
    Column("redop", lambda row: "sum" if COLLECTIVES[row.collective].reduces else "none", left=True),
    Column("root", lambda row: "0" if row.collective in _ROOTED else "-1"),
)


def _columns(settings: Settings) -> list[Column]:
    widest = max(len("none" if codec is None else codec.spec) for codec in settings.rows)
    return [
        Column("size", lambda row: str(row.nbytes), 9),
        *(_NCCL_TESTS if settings.device == "cuda" else ()),
        Column("codec", lambda row: row.codec, widest, left=True),
        Column("algorithm", lambda row: row.algorithm, left=True),
        Column("median", lambda row: number(row.seconds * 1e6), 11),
        Column("average", lambda row: number(row.seconds_avg * 1e6), 11),
        Column("algbw", lambda row: number(row.algbw / 1e6), 9),
        Column("busbw", lambda row: number(row.busbw / 1e6), 9),
        Column("wire", lambda row: number(row.wire_bytes, 0), 9),
        Column("ratio", lambda row: number(row.ratio), 6),
        Column("speed-up", lambda row: number(row.speedup)),
        Column("bound", lambda row: number(row.bound_seconds and row.bound_seconds * 1e6, 0), 8),
        Column("max_err", lambda row: "-" if row.max_err is None else f"{row.max_err:.1e}"),
        Column("#wrong", lambda row: number(row.wrong, 0)),
    ]


def _save(rows: Sequence[Row], options: argparse.Namespace) -> None:
    if options.json:
        write_rows(options.json, rows)
    if options.plot:
        from ..plot import plot_times

        plot_times(rows, options.plot)
