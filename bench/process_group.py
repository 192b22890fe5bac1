"""A process group of PyTorch's for ranks that MPI has started."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from collcomp.errors import CollcompError

from .ranks import World

__all__ = ["gloo", "require_torch"]


def require_torch(what: str) -> None:
    """Say how to install PyTorch, which `what` needs, where there is none."""
    if importlib.util.find_spec("torch") is None:
        raise CollcompError(f"{what} needs PyTorch: pip install 'collcomp[torch]'")


@contextmanager
def gloo(world: World) -> Iterator[None]:
    """Make gloo's group of all ranks PyTorch's default group, and take it down again."""
    import torch.distributed as dist

    import collcomp.torch  # noqa: F401 - the ranks find each other through MPI

    if world.link == "shm":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the host's name resolves to
    dist.init_process_group("gloo")
    yield  # after an error nobody waits for the others
    dist.destroy_process_group()
    world.comm.Barrier()  # rank 0 holds the store
