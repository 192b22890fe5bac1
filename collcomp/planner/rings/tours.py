"""Short round tours by local search: segments are turned round or moved elsewhere, the best such change first.

Source: Croes, "A method for solving traveling-salesman problems", 1958 (2-opt); Or, "Traveling salesman-type
combinatorial problems", 1976 (Or-opt); Martin, Otto and Felten, "Large-step Markov chains for the TSP", 1991 (kicks).
"""

from __future__ import annotations

import numpy as np

__all__ = ["improved", "kicked", "path", "tour_cost"]

_LONGEST_MOVED = 3
#: A change has to gain so much, relative to the whole tour.
_TINY = 1e-9


def tour_cost(order: np.ndarray, cost: np.ndarray) -> float:
    """Sum of the costs from each node to the next, and from the last to the first."""
    return float(cost[order, np.roll(order, -1)].sum())


def improved(order: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """The tour when no segment turned round, and none of up to three nodes moved, makes it shorter.

    Parameters
    ----------
    order : ndarray of int of shape (n,)
        Nodes as the tour visits them.
    cost : ndarray of shape (n, n)
        From node to node; it may differ in both directions. Finite.
    """
    n = len(order)
    if n < 4:  # there is one other tour at most
        return min(order, order[::-1], key=lambda tour: tour_cost(tour, cost))
    threshold = -_TINY * max(abs(tour_cost(order, cost)), 1e-300)
    for _ in range(20 * n):
        c = cost[np.ix_(order, order)]
        gain, change = min((_best_turn(c), *(_best_move(c, k) for k in range(1, min(_LONGEST_MOVED, n - 3) + 1))))
        if gain >= threshold:
            break
        order = order[change]
    return order


def _best_turn(c: np.ndarray) -> tuple[float, list[int]]:
    """Turn round places i + 1 to j."""
    n = len(c)
    place = np.arange(n)
    forth, back = c[place, (place + 1) % n], c[(place + 1) % n, place]
    more = np.concatenate(([0.0], np.cumsum(back - forth)))
    i, j = np.triu_indices(n - 1, 2)
    delta = c[i, j] + c[i + 1, (j + 1) % n] - forth[i] - forth[j] + more[j] - more[i + 1]
    if not delta.size:
        return 0.0, []
    best = int(delta.argmin())
    a, b = int(i[best]), int(j[best])
    return float(delta[best]), [*range(a + 1), *range(b, a, -1), *range(b + 1, n)]


def _best_move(c: np.ndarray, length: int) -> tuple[float, list[int]]:
    """Move `length` nodes from place i on to behind place j, as they are or turned round."""
    n = len(c)
    start = np.arange(n)
    last = (start + length - 1) % n
    before, after = (start - 1) % n, (start + length) % n
    removed = c[before, after] - c[before, start] - c[last, after]
    turned = sum((c[(start + k + 1) % n, (start + k) % n] - c[(start + k) % n, (start + k + 1) % n])
                 for k in range(length - 1))  # fmt: skip
    following = np.roll(start, -1)
    gap = c[start, following]
    as_is = c[:, start].T + c[np.ix_(last, following)] - gap
    reversed_ = c[:, last].T + c[np.ix_(start, following)] - gap + np.reshape(turned * np.ones(n), (-1, 1))
    # Not behind the node before it, nor behind one of its own.
    for k in range(-1, length):
        as_is[start, (start + k) % n] = reversed_[start, (start + k) % n] = np.inf
    delta = removed[:, None] + np.minimum(as_is, reversed_)
    i, j = map(int, np.unravel_index(int(delta.argmin()), delta.shape))
    segment = [(i + k) % n for k in range(length)]
    if reversed_[i, j] < as_is[i, j]:
        segment.reverse()
    moved = set(segment)
    rest = [(i + length + k) % n for k in range(n - length)]
    cut = rest.index(j) + 1
    assert not moved & set(rest)
    return float(delta[i, j]), [*rest[:cut], *segment, *rest[cut:]]


def kicked(order: np.ndarray, cost: np.ndarray, kicks: int, rng: np.random.Generator) -> np.ndarray:
    """The best of several local searches, each from the best tour so far with three segments exchanged."""
    best = improved(order, cost)
    if len(order) < 8:
        return best
    shortest = tour_cost(best, cost)
    for _ in range(kicks):
        a, b, c = np.sort(rng.choice(np.arange(1, len(order)), 3, replace=False))
        found = improved(np.concatenate((best[:a], best[b:c], best[a:b], best[c:])), cost)
        if (length := tour_cost(found, cost)) < shortest - _TINY * abs(shortest):
            best, shortest = found, length
    return best


def path(cost: np.ndarray, first: int, last: int, kicks: int, rng: np.random.Generator) -> np.ndarray:
    """A short way through all nodes from `first` to `last`, which are the same where there is one node only."""
    n = len(cost)
    if n <= 3:
        return np.array([first, *(i for i in range(n) if i not in (first, last)), *([last] if last != first else [])])
    closed = cost.copy()
    closed[last, first] = -float(np.abs(cost).sum())
    middle = [i for i in range(n) if i not in (first, last)]
    order = kicked(np.array([first, *middle, last]), closed, kicks, rng)
    return np.roll(order, -int(np.flatnonzero(order == first)[0]))
