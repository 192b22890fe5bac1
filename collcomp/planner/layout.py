"""How the ranks of one program lie in a cluster: what a plan over a topology comes to at run time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

__all__ = ["VARIABLE", "Layout", "layout_for", "layout_of_environment"]

#: Environment variable that names the file of a layout, for communicators that are given none.
VARIABLE = "COLLCOMP_LAYOUT"


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
        If `order` or `groups` do not name every rank once, by a whole number.
    """

    order: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, named in (("order", self.order), ("groups", chain(*self.groups))):
            if any(isinstance(rank, bool) or not isinstance(rank, Integral) for rank in named):
                raise ValueError(f"{name}: {getattr(self, name)} has what is no whole number")
        ranks = list(range(len(self.order)))
        if sorted(self.order) != ranks:
            raise ValueError(f"order: {self.order} does not name each of {len(ranks)} ranks once")
        if self.groups and sorted(rank for group in self.groups for rank in group) != ranks:
            raise ValueError(f"groups: {self.groups} do not name each of {len(ranks)} ranks once")

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.order)

    def among(self, members: Sequence[int]) -> Layout:
        """The layout of some of the ranks.

        Parameters
        ----------
        members : sequence of int
            Ranks of this layout; the i-th is rank i of the new one. Groups of which nobody is left are left out.
        """
        new = {rank: i for i, rank in enumerate(members)}
        groups = [tuple(new[rank] for rank in group if rank in new) for group in self.groups]
        return Layout(tuple(new[rank] for rank in self.order if rank in new), tuple(group for group in groups if group))

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
        except OSError as error:
            raise ValueError(f"layout: {path} cannot be read ({error.strerror})") from None
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"layout: {path} is no file that Layout.save wrote ({error})") from None


def layout_for(size: int, given: Layout | str | Path) -> Layout:
    """The layout that a program gave, or the one in that file.

    Raises
    ------
    ValueError
        If it is not one of `size` ranks.
    """
    layout = given if isinstance(given, Layout) else Layout.load(given)
    if layout.size != size:
        raise ValueError(f"layout: of {layout.size} ranks, the communicator has {size}")
    return layout


def layout_of_environment() -> Layout | ValueError | None:
    """The layout in the file that the environment names; what is wrong with it is for the calls that need it."""
    path = os.environ.get(VARIABLE)
    try:
        return Layout.load(path) if path else None
    except ValueError as error:
        return ValueError(f"{VARIABLE}: {error}")
