"""``collcomp bench demo``: what compression is worth on a slow link, in one small table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from collcomp.codecs import Int4, Int8, TopK
from collcomp.units import bytes_text

from . import testbed
from .launch import under_launcher
from .osu import COLLECTIVES
from .osu.driver import Row, Settings, measure
from .ranks import World, launch_or_run, progress_bar, show
from .table import Column, header, line

__all__ = ["run"]

_LINK = "200mbit"
_SIZES = (64 << 10, 1 << 20, 16 << 20, 64 << 20)
_CODECS = (Int8(), Int4(), TopK(ratio=0.01))


def run() -> int:
    """Start four ranks and print the table; the exit status."""
    link = _LINK
    if not under_launcher() and (reason := testbed.unavailable()):
        print(f"No {_LINK} links here, so this runs over plain shared memory: {reason}.", flush=True)
        link = "shm"
    return launch_or_run(["demo"], _body, ranks=None, default_ranks=4, link=None, default_link=link, mpi=None)


def _body(world: World) -> int:
    settings = Settings((None, *_CODECS), _SIZES)
    columns = _columns()
    wrong = 0
    with progress_bar(world, len(_SIZES), "demo") as bar:
        show(bar, f"Allreduce of float32, {world.mpi_version}, {world.size} ranks, link {world.link}:")
        show(bar, "median time, and speed-up over native MPI in the same run; all results checked\n")
        show(bar, header(columns))
        for _, rows in groupby(measure(world, COLLECTIVES["allreduce"], settings, bar), key=lambda row: row.nbytes):
            of_size = list(rows)
            wrong += sum(row.wrong or 0 for row in of_size)
            show(bar, line(columns, of_size))
        show(bar, f"\nwrong elements: {wrong}")
    return 1 if wrong else 0


def _columns() -> list[Column]:
    def cell(k: int) -> Callable[[Sequence[Row]], str]:
        def text(rows: Sequence[Row]) -> str:
            time = f"{rows[k].seconds * 1e3:.1f} ms"
            return f"{time} {rows[k].speedup:6.1f}x" if k else time

        return text

    codecs = [Column(codec.spec, cell(k), 19) for k, codec in enumerate(_CODECS, start=1)]
    return [Column("size", lambda rows: bytes_text(rows[0].nbytes), 8), Column("native", cell(0), 11), *codecs]
