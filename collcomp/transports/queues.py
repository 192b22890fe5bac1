"""Requests that wait for their counterpart, by route, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = ["RoutedRequest", "take_oldest"]

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")


@dataclass(slots=True, eq=False)
class RoutedRequest:
    """A send or receive that its transport itself completes, or has found an error with."""

    data: np.ndarray
    source: int
    tag: int
    complete: bool = False
    error: Exception | None = None


def take_oldest(queues: MutableMapping[KeyT, deque[ItemT]], route: KeyT) -> ItemT | None:
    """The oldest item of `route`, taken out; None when there is none. Queues that are empty then are dropped."""
    queue = queues.get(route)
    if not queue:
        return None
    item = queue.popleft()
    if not queue:
        del queues[route]
    return item
