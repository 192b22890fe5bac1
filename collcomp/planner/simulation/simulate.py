"""Transfers over a network, as fluid: every one drains at its max-min fair rate until the next event."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from collcomp.planner.simulation.fairness import max_min_rates

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Change", "Outcome", "Transfers", "routes_of", "simulate"]

# Events that lie closer than this, relative to the time since the beginning, are one.
_SAME = 1e-12


def routes_of(paths: Sequence[Sequence[int]], links: int) -> csr_array:
    """Routes as `Transfers` has them, each all of one path.

    Parameters
    ----------
    paths : sequence of sequence of int
        Indices of the links that each transfer passes.
    links : int
        How many links there are.
    """
    from scipy.sparse import csr_array

    counts = np.fromiter(map(len, paths), np.int64, len(paths))
    indices = np.fromiter((link for path in paths for link in path), np.int64, counts.sum())
    return csr_array((np.ones(len(indices)), indices, np.concatenate(([0], np.cumsum(counts)))), (len(paths), links))


@dataclass(frozen=True)
class Transfers:
    """What is to be sent.

    Attributes
    ----------
    routes : csr_array of shape (transfers, links)
        Share of each transfer that passes each link; a row without any is an event that takes no time by itself.
    nbytes : ndarray of shape (transfers,)
        Of each; 0 or more.
    starts : ndarray of shape (transfers,), optional
        Seconds before which it does not start; 0 by default.
    before, after : ndarray of int of shape (dependencies,), optional
        ``after[i]`` starts when ``before[i]`` and all others on which it depends have finished.
    delays : ndarray of shape (transfers,), optional
        Seconds that pass from there until the first byte moves: latency, or computation.
    weights : ndarray of shape (transfers,), optional
        Shares that it gets of a link, for `max_min_rates`: of several connections with one path, their number.

    Raises
    ------
    ValueError
        If shapes do not fit, or numbers cannot be.
    """

    routes: csr_array
    nbytes: np.ndarray
    starts: np.ndarray | None = None
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    delays: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = self.routes.shape[0]
        for name in ("nbytes", "starts", "delays", "weights"):
            values = getattr(self, name)
            if values is None:
                continue
            if np.shape(values) != (count,):
                raise ValueError(f"{name}: shape {np.shape(values)}, expected ({count},)")
            if not np.isfinite(values).all() or (np.asarray(values) < 0).any():
                raise ValueError(f"{name}: finite numbers of 0 or more are expected")
        if self.weights is not None and (np.asarray(self.weights) == 0).any():
            raise ValueError("weights: numbers above 0 are expected")
        waits = [() if ends is None else np.shape(ends) for ends in (self.before, self.after)]
        if waits[0] != waits[1]:
            raise ValueError("before, after: expected two arrays of one shape, or neither")


@dataclass(frozen=True)
class Change:
    """At a time a link's capacity becomes another: 0 when it breaks, less when it is slow, more when it is mended.

    Attributes
    ----------
    time : float
        Seconds.
    link : int
    capacity : float
        Bytes per second from then on.
    """

    time: float
    link: int
    capacity: float


@dataclass(frozen=True)
class Outcome:
    """What came of transfers.

    Attributes
    ----------
    started, finished : ndarray of shape (transfers,)
        Seconds; infinite for what never happened, behind a broken link.
    link_nbytes : ndarray of shape (links,)
        Bytes that passed.
    utilisation : ndarray of shape (links,)
        Of what could have passed until the last event; 0 for a link that was always broken.
    """

    started: np.ndarray
    finished: np.ndarray
    link_nbytes: np.ndarray
    utilisation: np.ndarray


def simulate(transfers: Transfers, capacities: np.ndarray, changes: Iterable[Change] = ()) -> Outcome:
    """Run transfers to their end, or to where nothing moves any more.

    The fluid model of SimGrid (Casanova et al., 2014; model CM02 without its corrections for TCP), which it equals;
    `collcomp bench planning simgrid` compares them.

    Parameters
    ----------
    transfers : Transfers
    capacities : ndarray of shape (links,)
        Bytes per second at time 0.
    changes : iterable of Change

    Raises
    ------
    ValueError
        If a change names no link or no capacity, or transfers wait for each other in a circle.
    """
    return _Run(transfers, capacities, changes).to_the_end()


class _Run:
    def __init__(self, transfers: Transfers, capacities: np.ndarray, changes: Iterable[Change]) -> None:
        count, links = transfers.routes.shape
        self.routes = transfers.routes
        self.capacities = np.array(capacities, np.float64)
        self.changes = sorted(changes, key=lambda change: change.time)[::-1]  # the next one last, of one time the first
        for change in self.changes:
            if not 0 <= change.link < links or not 0 <= change.capacity < math.inf or not change.time >= 0:
                raise ValueError(f"changes: {change} names no link of {links}, or no time or capacity that can be")
        self.remaining = np.array(transfers.nbytes, np.float64)
        self.nbytes = self.remaining.copy()
        self.earliest = np.zeros(count) if transfers.starts is None else np.array(transfers.starts, np.float64)
        self.delays = np.zeros(count) if transfers.delays is None else np.asarray(transfers.delays, np.float64)
        self.weights = np.ones(count) if transfers.weights is None else np.asarray(transfers.weights, np.float64)
        self._read_dependencies(transfers, count)
        self.started, self.finished = np.full((2, count), np.inf)
        self.active = np.empty(0, np.int64)
        self.possible = np.zeros(links)  # bytes that could have passed
        self.now = 0.0
        self.pending: list[tuple[float, int]] = []
        self._schedule(np.flatnonzero(self.missing == 0))

    def _read_dependencies(self, transfers: Transfers, count: int) -> None:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        none = np.empty(0, np.int64)
        before = none if transfers.before is None else np.asarray(transfers.before, np.int64)
        after = none if transfers.after is None else np.asarray(transfers.after, np.int64)
        for name, ends in (("before", before), ("after", after)):
            if len(ends) and not (ends.min() >= 0 and ends.max() < count):
                raise ValueError(f"{name}: names transfers that are not among {count}")
        graph = csr_array((np.ones(len(before)), (before, after)), (count, count))
        if len(before) and (
            (before == after).any() or connected_components(graph, connection="strong", return_labels=False) < count
        ):
            raise ValueError("before, after: transfers wait for each other in a circle")
        self.missing = np.bincount(after, minlength=count)
        self.successors = after[np.argsort(before, kind="stable")]
        self.successor_starts = np.concatenate(([0], np.cumsum(np.bincount(before, minlength=count))))

    def _schedule(self, ready: np.ndarray) -> None:
        times = np.maximum(self.earliest[ready], self.now) + self.delays[ready]
        for event in zip(times.tolist(), ready.tolist(), strict=True):
            heapq.heappush(self.pending, event)

    def to_the_end(self) -> Outcome:
        while True:
            self._start_and_change()
            rates = max_min_rates(self.routes[self.active], self.capacities, self.weights[self.active])
            with np.errstate(divide="ignore"):
                ends = self.now + self.remaining[self.active] / rates
            until = min(ends.min(initial=math.inf), self._next_event())
            if until == math.inf:
                break
            self._advance(rates, ends, until)
        moved = self.nbytes - self.remaining
        link_nbytes = self.routes.T @ moved
        used = np.divide(link_nbytes, self.possible, out=np.zeros_like(link_nbytes), where=self.possible > 0)
        return Outcome(self.started, self.finished, link_nbytes, used)

    def _next_event(self) -> float:
        start = self.pending[0][0] if self.pending else math.inf
        return min(start, self.changes[-1].time if self.changes and (len(self.active) or self.pending) else math.inf)

    def _due(self, time: float) -> bool:
        return time <= self.now * (1 + _SAME)

    def _start_and_change(self) -> None:
        while self.changes and self._due(self.changes[-1].time):
            change = self.changes.pop()
            self.capacities[change.link] = change.capacity
        started: list[int] = []
        while self.pending and self._due(self.pending[0][0]):
            which = heapq.heappop(self.pending)[1]
            self.started[which] = self.now
            if self.remaining[which] > 0 and self.routes.indptr[which] < self.routes.indptr[which + 1]:
                started.append(which)
            else:
                self._finish(np.array([which]))
        if started:
            self.active = np.concatenate((self.active, started))

    def _advance(self, rates: np.ndarray, ends: np.ndarray, until: float) -> None:
        self.possible += self.capacities * (until - self.now)
        self.remaining[self.active] = np.maximum(self.remaining[self.active] - rates * (until - self.now), 0)
        self.now = until
        done = ends <= until * (1 + _SAME)
        over, self.active = self.active[done], self.active[~done]
        self._finish(over)

    def _finish(self, over: np.ndarray) -> None:
        self.remaining[over] = 0
        self.finished[over] = self.now
        first, last = self.successor_starts[over], self.successor_starts[over + 1]
        followers = [self.successors[start:stop] for start, stop in zip(first, last, strict=True)]
        after = np.concatenate((np.empty(0, np.int64), *followers))
        np.subtract.at(self.missing, after, 1)
        after = np.unique(after)
        self._schedule(after[self.missing[after] == 0])
