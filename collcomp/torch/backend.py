"""Makes the name ``"collcomp"`` known to `torch.distributed`."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from collcomp.torch.group import ProcessGroup
from collcomp.torch.options import Options
from collcomp.torch.rendezvous import register_rendezvous

__all__ = ["NAME", "register"]

NAME = "collcomp"


def register() -> None:
    """Register the backend, the rendezvous of ranks that MPI started, and `monitored_barrier`."""
    dist.Backend.register_backend(NAME, _create, extended_api=True, devices=["cpu", "cuda"])
    register_rendezvous()
    _allow_monitored_barrier()


def _create(given: Any, options: Options | None) -> ProcessGroup:
    if options is None:
        options = Options.from_environment()
    elif not isinstance(options, Options):
        raise TypeError(f"pg_options: expected collcomp.torch.Options, got {type(options).__name__}")
    return ProcessGroup(given.store, given.group_rank, given.group_size, given.timeout, options)


def _allow_monitored_barrier() -> None:
    """`dist.monitored_barrier` asks for the name "gloo", but gloo is within: call it there."""
    original = dist.monitored_barrier

    @functools.wraps(original)
    def monitored_barrier(
        group: dist.ProcessGroup | None = None, timeout: timedelta | None = None, wait_all_ranks: bool = False
    ) -> None:
        chosen = dist.group.WORLD if group is None else group
        if not isinstance(chosen, ProcessGroup):
            return original(group, timeout, wait_all_ranks)
        return chosen.monitored_barrier(timeout or chosen.timeout, wait_all_ranks=wait_all_ranks)

    dist.monitored_barrier = dist.distributed_c10d.monitored_barrier = monitored_barrier
