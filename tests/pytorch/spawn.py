"""Run a function on the ranks of a torch process group: `run(2, function, *args)`."""

import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Ranks are forked by a server that has imported torch and done nothing else: 30 ms in place of 2 s for each.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo", "collcomp.torch"]
)


def run(size: int, function: Callable, *args: Any, backend: str | None = "collcomp", timeout: float = 60) -> list:
    """What ``function(rank, *args)`` returns on each of `size` ranks, in new processes.

    Parameters
    ----------
    function
        A function of a module that registers `backend`. It is pickled by its name, arguments and results by value.
    backend
        What `torch.distributed.init_process_group` is called with; None leaves that to `function`, which finds the
        variables that torchrun sets.
    timeout
        Seconds until the ranks are killed; operations of the group have half as many.

    Raises
    ------
    RuntimeError
        With the traceback of the rank that raised first, or the exit status of one that died.
    TimeoutError
        With the stacks of the ranks that were still running.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(size):
            ours, theirs = _context.Pipe()
            work = pickle.dumps((function, args))
            job = (theirs, rank, size, store.port, backend, work, timeout, f"{folder}/{rank}")
            process = _context.Process(target=_rank, args=job, daemon=True)
            process.start()
            theirs.close()
            ranks.append((process, ours))
        try:
            return _results(ranks, time.monotonic() + timeout + 1, folder)
        finally:
            for process, _ in ranks:
                process.kill()
                process.join()


def _results(ranks: list, deadline: float, folder: str) -> list:
    results: dict[int, Any] = {}
    number = {connection: rank for rank, (_, connection) in enumerate(ranks)}
    while waiting := [connection for connection, rank in number.items() if rank not in results]:
        ready = wait(waiting, deadline - time.monotonic())
        if not ready:
            slow = sorted(number[connection] for connection in waiting)
            stacks = [f"rank {rank}\n{Path(folder, str(rank)).read_text()}" for rank in slow]
            raise TimeoutError(f"ranks {slow} were still running\n" + "\n".join(stacks))
        for connection in filter(ready.__contains__, waiting):
            rank = number[connection]
            try:
                returned, value = pickle.loads(connection.recv_bytes())
            except EOFError:
                ranks[rank][0].join()
                raise RuntimeError(f"rank {rank} ended with exit status {ranks[rank][0].exitcode}") from None
            if not returned:
                raise RuntimeError(f"rank {rank} of {len(ranks)} raised\n{value}")
            results[rank] = value
    for _, connection in ranks:  # no rank closes its connections while another one still uses them
        connection.send_bytes(b"")
    for rank, (process, _) in enumerate(ranks):
        process.join(max(deadline - time.monotonic(), 1))
        if process.exitcode != 0:
            raise RuntimeError(f"rank {rank} had returned, and then ended with exit status {process.exitcode}")
    return [results[rank] for rank in range(len(ranks))]


def _rank(
    connection: Connection, rank: int, size: int, port: int, backend: str | None, work: bytes, timeout: float, log: str
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the parent's
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    torch.set_num_threads(1)
    with open(log, "w") as stacks:
        faulthandler.dump_traceback_later(timeout, file=stacks)
        try:
            function, args = pickle.loads(work)  # imports its module
            if backend is not None:
                dist.init_process_group(backend, timeout=timedelta(seconds=timeout / 2))
            message = pickle.dumps((True, function(rank, *args)))
        except BaseException:  # SystemExit and pytest's own failures, too
            message = pickle.dumps((False, traceback.format_exc()))
        connection.send_bytes(message)
        connection.recv_bytes()
        if dist.is_initialized():
            dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()
