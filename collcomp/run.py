"""Run an unmodified mpi4py program with its collectives compressed."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence

from collcomp.diagnosis import Records, Total
from collcomp.policies import DEFAULT_MIN_NBYTES, policy_of

__all__ = ["report_table", "run_program"]


def run_program(
    program: str,
    arguments: Sequence[str],
    *,
    module: bool = False,
    codec: str | None = None,
    min_nbytes: int = DEFAULT_MIN_NBYTES,
    report: bool = False,
) -> int:
    """Run `program` as ``__main__`` with a compressing communicator in place of ``MPI.COMM_WORLD``.

    Parameters
    ----------
    program : str
        Path of a script, or name of a module.
    arguments : sequence of str
        The program's own.
    module : bool
        Whether `program` names a module.
    codec : str, optional
        Codec of collectives on at least `min_nbytes` bytes of floating-point values, or ``"auto"``.
    min_nbytes : int
    report : bool
        Rank 0 prints at the end what each collective sent, summed over all ranks.

    Returns
    -------
    int
        The program's exit status. As under ``python -m mpi4py``, an uncaught exception on one rank ends all ranks.
    """
    policy_of(codec)  # a wrong spec is told before MPI is initialised
    from mpi4py import MPI

    from collcomp.mpi import Comm

    world = MPI.COMM_WORLD
    records = Records()
    MPI.COMM_WORLD = Comm(  # type: ignore[misc]
        world, codec=codec, min_nbytes=min_nbytes, records=records
    )
    sys.argv = [program, *arguments]
    status = 0
    try:
        if module:
            sys.path[0] = os.getcwd()
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(os.path.abspath(program))
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        status = _exit_status(end)
        if status:
            world.Abort(status)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        world.Abort(1)
    if report and not MPI.Is_finalized():
        totals = world.gather(records.totals(), root=0)
        if totals is not None:
            print(report_table(totals), flush=True)
    return status


def report_table(totals: Sequence[dict[tuple[str, str, str], Total]]) -> str:
    """What each collective sent, one line for each algorithm and codec, summed over the ranks in `totals`."""
    merged: dict[tuple[str, str, str], Total] = {}
    for of_rank in totals:
        for kind, total in of_rank.items():
            into = merged.setdefault(kind, Total())
            into.calls = max(into.calls, total.calls)
            into.nbytes += total.nbytes
            into.wire_nbytes += total.wire_nbytes
            into.raw_nbytes += total.raw_nbytes
            into.seconds = max(into.seconds, total.seconds)
    lines = [f"# collcomp: collectives of {len(totals)} ranks (calls and seconds of the busiest rank, bytes of all)"]
    lines.append(
        f"# {'collective':<16}{'algorithm':<11}{'codec':<24}{'calls':>8}{'bytes given':>15}{'bytes sent':>15}"
        f"{'ratio':>8}{'seconds':>10}"
    )
    for (collective, algorithm, codec), total in sorted(merged.items()):
        sent = "-" if algorithm == "native" else f"{total.wire_nbytes}"
        ratio = f"{total.raw_nbytes / total.wire_nbytes:.2f}" if total.wire_nbytes else "-"
        lines.append(
            f"# {collective:<16}{algorithm:<11}{codec:<24}{total.calls:>8}{total.nbytes:>15}{sent:>15}"
            f"{ratio:>8}{total.seconds:>10.3f}"
        )
    return "\n".join(lines)


def _exit_status(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)
    return 1
