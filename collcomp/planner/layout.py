"""How the ranks of one program lie in a cluster: what a plan over a topology comes to at run time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Who is near to whom; the same on every rank.

    Attributes
    ----------
    order : tuple of int
        Ranks in the order in which a ring visits them.
    groups : tuple of tuple of int
        Ranks that share a host, or a leaf switch: links inside a group are better than links between groups.

    Raises
    ------
    ValueError
        If `order` or `groups` do not name every rank once.
    """

    order: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        ranks = list(range(len(self.order)))
        if sorted(self.order) != ranks:
            raise ValueError(f"order: {self.order} does not name each of {len(ranks)} ranks once")
        if self.groups and sorted(rank for group in self.groups for rank in group) != ranks:
            raise ValueError(f"groups: {self.groups} do not name each of {len(ranks)} ranks once")

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.order)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layout:
        """The layout that `dataclasses.asdict` gave, or JSON made of it."""
        groups: Sequence[Sequence[int]] = data.get("groups", ())
        return cls(tuple(data["order"]), tuple(tuple(group) for group in groups))

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Layout:
        """Read what `save` wrote."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"layout: {path} is no file that Layout.save wrote ({error})") from None
