"""Flows between leaves spread evenly over spines, by alternating trails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from collcomp.planner.flows.table import FlowTable, Placement, Way

__all__ = ["even_out"]

# What rounding makes of sums that are alike.
_SLACK = 1e-9
# Any power above 1 evens alike flows out; of unlike ones a high power relieves the busiest links first.
_POWER = 8


@dataclass(eq=False)
class _Item:
    """A way of a placement that leads over a spine: from leaf ``ends[0]`` over `spine` to leaf ``ends[1]``."""

    placement: Placement
    place: int
    nbytes: float
    ends: tuple[str, str]
    spine: str


def even_out(table: FlowTable, placements: Sequence[Placement]) -> None:
    """Move ways between spines until no leaf has two spines whose loads differ by more than one way, if that can be.

    Ways are edges between the leaves they leave and the leaves they reach, spines are colours. A colouring that has
    every colour at every leaf as often as any other exists for every bipartite graph (de Werra 1971), and is found by
    trails: where a leaf has too much on spine a, one way moves from a to b; if that leaves the leaf at its other end
    with too much on b, one of that leaf's ways moves from b to a, and so on. Every trail that is kept makes a sum of
    high powers of the times that links are busy smaller. So with ways of equal bytes and links of equal bandwidth the
    fullest link is as little full as any placement can make it.

    Ways that are not over one spine between two leaves, as in three tiers, are left as they are.

    Parameters
    ----------
    table : FlowTable
    placements : sequence of Placement
        Those that may move, of which ports and numbers of queue pairs stay.
    """
    _Evening(table, placements).run()


class _Evening:
    def __init__(self, table: FlowTable, placements: Sequence[Placement]) -> None:
        self.table = table
        self.index = table.paths.index
        self.items: dict[int, dict[_Item, None]] = defaultdict(dict)  # that may move, by link; sets in a fixed order
        self.sides: dict[tuple[str, int], None] = {}  # leaves as senders (0) and as receivers (1)
        for placement in placements:
            for place, (way, share) in enumerate(zip(placement.ways, placement.shares, strict=True)):
                if len(way) == 4:
                    self._take(placement, place, way, share * placement.flow.nbytes)

    def _take(self, placement: Placement, place: int, way: Way, nbytes: float) -> None:
        _, source, spine, dest, _ = self.table.paths.nodes(way)
        item = _Item(placement, place, nbytes, (source, dest), spine)
        for end in (0, 1):
            self.items[self._link(item.ends[end], end, spine)][item] = None
            self.sides[item.ends[end], end] = None

    def _link(self, leaf: str, end: int, spine: str) -> int:
        return self.index[(leaf, spine) if end == 0 else (spine, leaf)]

    def _links(self, item: _Item, spine: str) -> tuple[int, int]:
        """Up and down, if it went over this spine."""
        return self._link(item.ends[0], 0, spine), self._link(item.ends[1], 1, spine)

    def _joined(self, leaf: str, spine: str) -> bool:
        """Whether cables join them, whatever works."""
        return (leaf, spine) in self.index and (spine, leaf) in self.index

    def _seconds(self, link: int) -> float:
        bandwidth = self.table.bandwidths[link]
        return self.table.loads[link] / bandwidth if bandwidth > 0 else float("inf")

    def run(self) -> None:
        waiting = dict.fromkeys(self.sides)
        while waiting:
            leaf, end = next(iter(waiting))
            moved = self._trail_from(leaf, end)
            if not moved:
                del waiting[leaf, end]
            waiting.update(dict.fromkeys((item.ends[end], end) for item in moved for end in (0, 1)))

    def _trail_from(self, leaf: str, end: int) -> list[_Item]:
        """Move what brings a leaf's fullest and emptiest spine closer to each other; none if nothing does."""
        busy = {
            spine: self._seconds(self._link(leaf, end, spine))
            for spine in self.table.paths.spines_of(leaf)
            if self._joined(leaf, spine)
        }
        busy = {spine: seconds for spine, seconds in busy.items() if seconds < float("inf")}
        fuller = [spine for spine in busy if self.items[self._link(leaf, end, spine)]]
        if not fuller:
            return []
        full, free = max(fuller, key=busy.__getitem__), min(busy, key=busy.__getitem__)
        return self._trail(leaf, end, full, free) if busy[full] > busy[free] * (1 + _SLACK) else []

    def _trail(self, leaf: str, end: int, full: str, free: str) -> list[_Item]:
        moved: dict[_Item, None] = {}
        before: dict[int, float] = {}  # seconds of every link that the trail touches
        while (item := self._best(leaf, end, full, free, moved)) is not None:
            for link in (*self._links(item, full), *self._links(item, free)):
                before.setdefault(link, self._seconds(link))
            self._move(item, free)
            moved[item] = None
            leaf, end = item.ends[1 - end], 1 - end
            link = self._link(leaf, end, free)
            alone = item.nbytes / self.table.bandwidths[link]
            if self._seconds(link) - self._seconds(self._link(leaf, end, full)) <= alone * (1 + _SLACK):
                break  # this leaf's two spines differ by no more than before
            full, free = free, full
        if self._is_better(before):
            return list(moved)
        for item in moved:
            self._move(item, free if item.spine == full else full)
        return []

    def _is_better(self, before: dict[int, float]) -> bool:
        unit = max(before.values(), default=0.0)
        old = sum((seconds / unit) ** _POWER for seconds in before.values())
        new = sum((max(self._seconds(link), 0.0) / unit) ** _POWER for link in before)
        return new < old * (1 - _SLACK)

    def _best(self, leaf: str, end: int, full: str, free: str, moved: dict[_Item, None]) -> _Item | None:
        """An item of a leaf's full spine that can go over the free one, and whose other leaf gains most by that."""
        best, most = None, -float("inf")
        for item in self.items[self._link(leaf, end, full)]:
            if item in moved:
                continue
            other, there = item.ends[1 - end], 1 - end
            if not self._joined(other, free):
                continue
            gain = self._seconds(self._link(other, there, full)) - self._seconds(self._link(other, there, free))
            if gain > most:
                best, most = item, gain
        return best

    def _move(self, item: _Item, spine: str) -> None:
        for old, new in zip(self._links(item, item.spine), self._links(item, spine), strict=True):
            self.table.loads[old] -= item.nbytes
            self.table.loads[new] += item.nbytes
            del self.items[old][item]
            self.items[new][item] = None
        item.spine = spine
        way = item.placement.ways[item.place]
        item.placement.ways[item.place] = (way[0], *self._links(item, spine), way[3])
