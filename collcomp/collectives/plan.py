"""How one operation is to be done."""

from __future__ import annotations

from dataclasses import dataclass

from collcomp.codecs.base import Codec

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one operation is to be done; equal on every rank.

    Attributes
    ----------
    algorithm : str
        ``"native"``, ``"direct"``, ``"ring"``, ``"hierarchical"``, ``"gathered"``, ``"merged"``, ``"summed"`` or
        ``"switched"``.
    codec : Codec
    order : tuple of int
        Ranks in the order that a ring visits them; rank order when empty.
    groups : tuple of tuple of int
        Ranks near to each other, for `hierarchical`.
    reason : str
        Why this was chosen, where that was not the caller's own wish; records keep it.
    """

    algorithm: str
    codec: Codec
    order: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    reason: str = ""
