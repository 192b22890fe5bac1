"""How the ranks average their gradients: DDP alone, PyTorch's own hooks, or ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from ..arguments import NO_CODEC, TORCH_HOOKS

__all__ = ["averaging"]

# Steps that PyTorch's PowerSGD averages without compression: the fewest that it allows. Ours needs none.
_TORCH_START_STEPS = 2
_TORCH_RANKS = {"torch:powersgd": 1, "torch:powersgd:rank=8": 8}  # PyTorch's default, and that of ours


@contextmanager
def averaging(model: DistributedDataParallel, method: str) -> Iterator[None]:
    """Have `model` average its gradients by `method`: ``"none"``, one of `TORCH_HOOKS`, or the spec of a codec.

    Collective, and so is the end, when our hook lets go of its connections; not so after an error, when other ranks may
    not come.
    """
    if method == "torch:fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method in _TORCH_RANKS:
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=_TORCH_RANKS[method], start_powerSGD_iter=_TORCH_START_STEPS
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    if method in (NO_CODEC, *TORCH_HOOKS):
        yield
        return
    import collcomp.torch

    hook = collcomp.torch.ddp_hook(method, feedback=False, named_parameters=model.named_parameters())
    model.register_comm_hook(None, hook)
    yield
    hook.close()
