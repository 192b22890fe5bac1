"""The PyTorch face: a backend of `torch.distributed`, hooks for DDP and FSDP2.

Importing this module registers the backend ``"collcomp"``.
"""

from collcomp.torch.backend import register
from collcomp.torch.checkpoint import reshard
from collcomp.torch.ddp import DdpHook, bf16_compress_wrapper, ddp_hook, fp16_compress_wrapper
from collcomp.torch.fsdp import AllGather, ReduceScatter
from collcomp.torch.group import ProcessGroup
from collcomp.torch.options import Options
from collcomp.torch.scope import load_state_dict, records, set_codec, state_dict, use_codec

register()

__all__ = [
    "AllGather",
    "DdpHook",
    "Options",
    "ProcessGroup",
    "ReduceScatter",
    "bf16_compress_wrapper",
    "ddp_hook",
    "fp16_compress_wrapper",
    "load_state_dict",
    "records",
    "reshard",
    "set_codec",
    "state_dict",
    "use_codec",
]
