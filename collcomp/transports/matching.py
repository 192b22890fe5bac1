"""Which message goes to which receive."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Generic, TypeVar

from collcomp.transports.queues import take_oldest

__all__ = ["ANY", "Matching"]

#: Stands for every source, or for every tag.
ANY = -1

ItemT = TypeVar("ItemT")


class Matching(Generic[ItemT]):
    """Items that wait for a counterpart, by source and tag, oldest first.

    Receives wait here for messages and messages for receives; of either side, `ANY` matches all of the other.
    """

    def __init__(self) -> None:
        self._queues: dict[tuple[int, int], deque[tuple[int, ItemT]]] = {}
        self._numbers = itertools.count()

    def put(self, source: int, tag: int, item: ItemT) -> None:
        """Have `item` wait."""
        self._queues.setdefault((source, tag), deque()).append((next(self._numbers), item))

    def take(self, source: int, tag: int) -> ItemT | None:
        """The item that has waited longest of those that match, taken out; None when there is none."""
        if source == ANY or tag == ANY:
            routes = [route for route in self._queues if source in (ANY, route[0]) and tag in (ANY, route[1])]
        else:
            wanted = ((source, tag), (source, ANY), (ANY, tag), (ANY, ANY))
            routes = [route for route in wanted if route in self._queues]
        if not routes:
            return None
        route = routes[0] if len(routes) == 1 else min(routes, key=lambda route: self._queues[route][0][0])
        found = take_oldest(self._queues, route)
        return None if found is None else found[1]

    def remove(self, source: int, tag: int, item: ItemT) -> None:
        """Take `item` out, where it waits under `source` and `tag`."""
        queue = self._queues.get((source, tag))
        if queue is None:
            return
        kept = deque(entry for entry in queue if entry[1] is not item)
        if kept:
            self._queues[source, tag] = kept
        else:
            del self._queues[source, tag]

    def take_all(self, source: int) -> list[ItemT]:
        """All that wait under this very `source`, taken out."""
        routes = [route for route in self._queues if route[0] == source]
        return [entry[1] for route in routes for entry in self._queues.pop(route)]
