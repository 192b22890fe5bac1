"""Ranks as threads of one process: try collectives in a notebook, test programs without MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from collcomp.communicator import Communicator
from collcomp.transports import local_transports

__all__ = ["communicators", "run"]


def communicators(size: int, **options: Any) -> list[Communicator]:
    """The communicators of `size` ranks; give each to a thread of its own.

    Parameters
    ----------
    size : int
    **options
        As `Communicator` takes them.
    """
    pairs = zip(local_transports(size), local_transports(size), strict=True)
    return [Communicator(transport, mailbox=mailbox, **options) for transport, mailbox in pairs]


def run(size: int, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """Run ``function(comm, *args)`` as `size` ranks and return what each of them returned.

    Raises
    ------
    Exception
        The first error of any rank, once all have ended; the others raise too, when they wait for that rank.

    Examples
    --------
    >>> import numpy as np
    >>> import collcomp
    >>> def program(comm):
    ...     total = np.empty(1000, np.float32)
    ...     comm.allreduce(np.full(1000, comm.rank, np.float32), total, codec="int8")
    ...     return float(total[0])
    >>> collcomp.local.run(4, program)
    [6.0, 6.0, 6.0, 6.0]
    """
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def rank_main(comm: Communicator) -> None:
        try:
            results[comm.rank] = function(comm, *args)
        except BaseException as error:
            errors.append(error)
            comm.leave(error)

    comms = communicators(size, **options)
    threads = [threading.Thread(target=rank_main, args=(comm,), name=f"rank-{comm.rank}") for comm in comms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for comm in comms:
        comm.close()
    if errors:
        raise errors[0]
    return results
