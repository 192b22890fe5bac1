"""Requests that wait for their counterpart, by route, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, MutableMapping
from typing import TypeVar

__all__ = ["take_oldest"]

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")


def take_oldest(queues: MutableMapping[KeyT, deque[ItemT]], route: KeyT) -> ItemT | None:
    """The oldest item of `route`, taken out; None when there is none. Queues that are empty then are dropped."""
    queue = queues.get(route)
    if not queue:
        return None
    item = queue.popleft()
    if not queue:
        del queues[route]
    return item
