"""Which codec a process group uses from now on, or for a stretch of code; what it did, and what it remembers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from collcomp.diagnosis import Records
from collcomp.torch.checkpoint import engine_state, load_engine_state
from collcomp.torch.engine import engine_of, group_or_default, records_of
from collcomp.torch.group import ProcessGroup
from collcomp.torch.options import CodecChoice, Options

__all__ = ["load_state_dict", "records", "set_codec", "state_dict", "use_codec"]


def set_codec(group: dist.ProcessGroup | None, codec: CodecChoice, *, min_nbytes: int | None = None) -> None:
    """Choose what `group` compresses from now on. Collective: all ranks of the group say the same.

    Parameters
    ----------
    group : ProcessGroup or None
        Of backend ``"collcomp"``; None for the default group.
    codec : str, Codec, mapping or None
        As in `Options`; None for none.
    min_nbytes : int, optional
        Smaller messages travel as they are; what it was before by default.

    Raises
    ------
    TypeError
        `group` is of another backend.
    ValueError
        Naming the codec, operation or parameter that is not known, or a codec that remembers tensors by name.
    """
    own = _own(group)
    own.choose(_options(own, codec, min_nbytes))


@contextmanager
def use_codec(
    codec: CodecChoice,
    *,
    key: str | None = None,
    group: dist.ProcessGroup | None = None,
    min_nbytes: int | None = None,
) -> Iterator[None]:
    """Compress what `group` is asked to do within the block, as by `set_codec`. It holds for all threads.

    Parameters
    ----------
    codec : str, Codec, mapping or None
        As in `Options`; None for no compression within the block.
    key : str, optional
        Name of the tensor that is summed within the block, for codecs that remember what they left out of it.
    group : ProcessGroup, optional
        The default group by default.
    min_nbytes : int, optional
        Smaller messages travel as they are; what it is outside by default.
    """
    own = _own(group)
    before = own.chosen
    own.choose(_options(own, codec, min_nbytes), key)
    try:
        yield
    finally:
        own.choose(*before)


def records(group: dist.ProcessGroup | None = None) -> Records:
    """What the compressed operations of `group` did, and why others were not, since it first had a codec."""
    return records_of(group_or_default(group))


def state_dict(group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """What `use_codec` with keys, and `ReduceScatter`, left out of tensors on `group`, for a checkpoint.

    Dicts of tensors, numbers and strings. Each rank has its own. Collective if the group has compressed nothing so far.
    """
    return engine_state(engine_of(group_or_default(group)))


def load_state_dict(state: Mapping[str, Any], group: dist.ProcessGroup | None = None) -> None:
    """Put back what `state_dict` gave, on all ranks of the group. Collective if it has compressed nothing so far."""
    load_engine_state(engine_of(group_or_default(group)), state)


def _own(group: dist.ProcessGroup | None) -> ProcessGroup:
    chosen = group_or_default(group)
    if not isinstance(chosen, ProcessGroup):
        raise TypeError(f"group: its backend is {dist.get_backend(chosen)!r}, expected 'collcomp'")
    return chosen


def _options(group: ProcessGroup, codec: CodecChoice, min_nbytes: int | None) -> Options:
    return Options(codec, group.chosen[0].min_nbytes if min_nbytes is None else min_nbytes)
