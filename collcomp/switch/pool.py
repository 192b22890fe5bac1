"""The registers of an aggregating switch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from collcomp.kernels.cpu.registers import AGGREGATOR, CHUNK, COLUMNS, COUNT, COUNTERS, DONE, EPOCH, FACTS, STATE

__all__ = ["Aggregators", "Pool", "Views", "aligned", "clear_rows", "make_pool", "views_of"]


class Views(NamedTuple):
    """The same memory, rows of packets or registers, as elements of every type."""

    u8: np.ndarray
    u16: np.ndarray
    i16: np.ndarray
    u32: np.ndarray
    i32: np.ndarray
    f32: np.ndarray
    u64: np.ndarray
    i64: np.ndarray


def aligned(nbytes: int) -> np.ndarray:
    """Memory (uint8) for a packet, which begins at a multiple of 8 bytes and ends at one."""
    return np.zeros(-(-nbytes // 8), np.uint64).view(np.uint8)


def views_of(memory: np.ndarray) -> Views:
    """Views of contiguous memory of shape (rows, bytes), whose rows begin at multiples of 8 bytes."""
    kinds = (np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.uint64, np.int64)
    return Views(*(memory.view(kind) for kind in kinds))


class Aggregators(NamedTuple):
    """Registers that chunks of all jobs share (`collcomp.kernels.cpu.atp`); of no length where a program has none.

    Attributes
    ----------
    owners : ndarray of int64, shape (aggregators,)
        Row of the pool of the chunk that is being summed; -1 where there is none.
    counts : ndarray of int64, shape (aggregators,)
        Packets in the sum.
    values : ndarray of int32, shape (aggregators, elements)
    congested : ndarray of uint8, shape (1,)
        Whether a queue is long now.
    """

    owners: np.ndarray
    counts: np.ndarray
    values: np.ndarray
    congested: np.ndarray


class Pool(NamedTuple):
    """All that the program of a switch (`collcomp.kernels.cpu.switch`) knows, as arrays.

    Attributes
    ----------
    jobs : ndarray of uint64, shape (jobs,)
        Numbers of the jobs; 0 where there is none.
    facts : ndarray of int64, shape (jobs, FACTS)
        See `collcomp.kernels.cpu.registers`.
    failed : ndarray of int64, shape (jobs,)
        The last operation that failed.
    heard : ndarray of float64, shape (jobs,)
        When the last packet arrived, in seconds.
    names, parents : ndarray of uint64, shapes (jobs, workers, 2) and (jobs, 2)
        Addresses of the workers, and of the switch above: a ``struct sockaddr_in``, whose second word is 0.
    rows : ndarray of int64, shape (2 slots, COLUMNS)
        What each row is used for.
    seen : ndarray of uint8, shape (2 slots, workers)
        Parts of a chunk that each worker has sent, a bit each.
    arrived : ndarray of float64, shape (2 slots, workers)
        When each worker's packet arrived, in seconds.
    completed : ndarray of float64, shape (2 slots, 2)
        When the last one did; seconds that the switch above waited for others.
    values : Views, shape (2 slots, payload's bytes)
        Integers while they are combined, then the results.
    window, signs, limbs, special : ndarray, shapes (2 slots, elements) and (2 slots, elements, 8)
        Exact sums, see `collcomp.kernels.cpu.exact`. Limbs take memory only once they are used.
    aggregators : Aggregators
    counters : ndarray of int64
        In the order of `COUNTERS`.
    """

    jobs: np.ndarray
    facts: np.ndarray
    failed: np.ndarray
    heard: np.ndarray
    names: np.ndarray
    parents: np.ndarray
    rows: np.ndarray
    seen: np.ndarray
    arrived: np.ndarray
    completed: np.ndarray
    values: Views
    window: np.ndarray
    signs: np.ndarray
    limbs: np.ndarray
    special: np.ndarray
    aggregators: Aggregators
    counters: np.ndarray


def make_pool(
    slots: int, payload_nbytes: int, workers: int, jobs: int, *, floats: int | None = None, aggregators: int = 0
) -> Pool:
    """Registers of `slots` slots for payloads of so many bytes (a multiple of 8), so many workers a job, and jobs.

    Of each payload, at most `floats` (half its bytes, where it is None) can be summed exactly.
    """
    rows, elements = 2 * slots, payload_nbytes // 2 if floats is None else floats
    pool = Pool(
        jobs=np.zeros(jobs, np.uint64),
        facts=np.zeros((jobs, FACTS), np.int64),
        failed=np.zeros(jobs, np.int64),
        heard=np.zeros(jobs),
        names=np.zeros((jobs, workers, 2), np.uint64),
        parents=np.zeros((jobs, 2), np.uint64),
        rows=np.zeros((rows, COLUMNS), np.int64),
        seen=np.zeros((rows, workers), np.uint8),
        arrived=np.zeros((rows, workers)),
        completed=np.zeros((rows, 2)),
        values=views_of(np.zeros((rows, payload_nbytes), np.uint8)),
        window=np.zeros((rows, elements), np.int64),
        signs=np.zeros((rows, elements), np.uint8),
        limbs=np.zeros((rows, elements, 8), np.int64),
        special=np.zeros((rows, elements), np.uint8),
        aggregators=Aggregators(
            owners=np.full(aggregators, -1, np.int64),
            counts=np.zeros(aggregators, np.int64),
            values=np.zeros((aggregators, payload_nbytes // 4), np.int32),
            congested=np.zeros(1, np.uint8),
        ),
        counters=np.zeros(len(COUNTERS), np.int64),
    )
    clear_rows(pool, 0, slots)
    return pool


def clear_rows(pool: Pool, first: int, slots: int) -> None:
    """Make slots as good as new."""
    rows = slice(2 * first, 2 * (first + slots))
    owners = pool.aggregators.owners
    owners[(owners >= rows.start) & (owners < rows.stop)] = -1
    pool.rows[rows, [EPOCH, CHUNK]] = 0
    pool.rows[rows, COUNT], pool.rows[rows, STATE] = 0, DONE
    pool.rows[rows, AGGREGATOR] = -1
    pool.seen[rows] = 0
