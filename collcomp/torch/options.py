"""What a process group's users say of codecs, and how that becomes a policy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from collcomp.codecs import Codec, as_codec
from collcomp.policies import DEFAULT_MIN_NBYTES, ByCollective, Fixed
from collcomp.units import parse_nbytes

__all__ = ["CodecChoice", "Options", "codec_or_none"]

#: One codec for what is summed, or one for each operation by PyTorch's name; None for none.
CodecChoice = str | Codec | Mapping[str, str | Codec | None] | None

# PyTorch's names and the engine's. Of these, `send` stands for all point-to-point messages.
_COLLECTIVES = {
    "all_reduce": "allreduce",
    "reduce": "reduce",
    "reduce_scatter": "reduce_scatter",
    "all_gather": "allgather",
    "broadcast": "bcast",
    "all_to_all": "alltoall",
    "gather": "gather",
    "scatter": "scatter",
    "send": "send",
}
_SUMS = ("all_reduce", "reduce", "reduce_scatter")


def codec_or_none(what: str | Codec | None) -> Codec | None:
    """The codec that `what` names; None for None and ``"none"``."""
    return None if what is None or what == "none" else as_codec(what)


@dataclass(frozen=True)
class Options:
    """Options of a process group: ``init_process_group("collcomp", pg_options=Options(codec="int8"))``.

    Parameters
    ----------
    codec : str, Codec or mapping, optional
        A codec by itself is for what is summed: `all_reduce`, `reduce` and `reduce_scatter` of floating-point values.
        What only moves values, parameters in most programs, stays as it is unless it is named: a mapping gives each
        operation its own codec, ``{"reduce_scatter": "int4", "all_gather": "int8", "send": "bf16"}``. Other names:
        ``all_reduce``, ``reduce``, ``broadcast``, ``all_to_all``, ``gather``, ``scatter``. The ``*_into_tensor``, list
        and coalesced forms count as what they are forms of.
    min_nbytes : int
        Smaller messages travel as they are; not so messages of ``send``.
    """

    codec: CodecChoice = None
    min_nbytes: int = DEFAULT_MIN_NBYTES

    def __post_init__(self) -> None:
        _ = self.codecs  # what is wrong with them is told now

    @cached_property
    def codecs(self) -> dict[str, Codec]:
        """The codec of each of the engine's collectives that has one."""
        chosen = self.codec if isinstance(self.codec, Mapping) else dict.fromkeys(_SUMS, self.codec)
        unknown = [name for name in chosen if name not in _COLLECTIVES]
        if unknown:
            raise ValueError(f"codec: {unknown[0]!r} is no operation; known: {', '.join(_COLLECTIVES)}")
        given = {_COLLECTIVES[name]: what for name, what in chosen.items()}
        return {name: codec for name, what in given.items() if (codec := codec_or_none(what)) is not None}

    @property
    def policy(self) -> ByCollective:
        """The engine's policy that does as they say."""
        return ByCollective({name: Fixed(codec, self.min_nbytes) for name, codec in self.codecs.items()})

    @classmethod
    def from_environment(cls) -> Options:
        """Those of ``COLLCOMP_CODEC`` and ``COLLCOMP_MIN_BYTES``."""
        text = os.environ.get("COLLCOMP_MIN_BYTES")
        return cls(
            os.environ.get("COLLCOMP_CODEC") or None,
            DEFAULT_MIN_NBYTES if text is None else parse_nbytes(text, "COLLCOMP_MIN_BYTES"),
        )
