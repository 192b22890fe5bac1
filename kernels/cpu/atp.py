"""The program of a switch whose aggregators are shared by all jobs, with a parameter server behind them.

A packet belongs to the aggregator that a hash of its job and chunk tells. Where that is taken by another chunk, the
packet goes on to the server; so does the sum of an aggregator that has all workers' packets, or of which one is sent
again: some may have gone to the server already. The server adds what it gets, tells all workers the sum, and keeps it
until the slot is used again. What it keeps are rows of registers as other programs have them; `Pool.seen` says whose
packet is in one or the other, `MISSING` counts the packets that are not at the server.

An int32 at an end of its range says that the sum was too large. Then, as where a worker sends floats to begin with, the
server asks all for the chunk as floats, and sums those exactly, with one rounding, whatever their order.

Source: Lao et al., "ATP: In-network Aggregation for Multi-tenant Learning", NSDI 2021; its public code (in-ATP/ATP).
What differs here: switch and server are one process, so that nothing gets lost between them, no worker's packet is in
both, and aggregators are free as soon as their sum is complete, not when the server's answer passes. The hash is of the
chunk's own number (there, modulo the window, and made free of collisions within a job). A server there starts to sum
floats with packets that are sent again, in float32, in the order of their arrival. Left out: a second level of
switches, and new places for aggregators that were found taken.
"""

import numpy as np

from collcomp.kernels.cpu import exact, fixed_point
from collcomp.kernels.cpu.common import copy, random32
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packets import AGAIN, COLLISION, ECN, FIXED32, HEADER_WORDS, OVERFLOW, PARTS
from collcomp.kernels.cpu.registers import (
    AGGREGATOR,
    CHILDREN,
    CHUNK,
    COLLISIONS,
    COUNT,
    DONE,
    DUPLICATES,
    EPOCH,
    EXPONENT,
    FLAGS,
    FLUSHED,
    HEADROOM,
    LANES,
    MISSING,
    NOTHING,
    OVERFLOWS,
    REPEATED,
    RESULTS,
    STATE,
    TO_ALL,
    TO_SENDER,
)

__all__ = ["add", "place_of", "release"]

_ALL_PARTS = np.uint8((1 << PARTS) - 1)


@inlined
def place_of(job, epoch, chunk, aggregators):
    """The aggregator that a chunk belongs to."""
    return np.int64(random32(job + np.uint64(epoch) * np.uint64(0x9E3779B97F4A7C15), chunk)) % aggregators


@inlined
def release(pool, row):
    """Give the row's aggregator back, if it holds one."""
    own = pool.rows[row]
    if own[AGGREGATOR] >= 0:
        pool.aggregators.owners[own[AGGREGATOR]] = -1
        own[AGGREGATOR] = -1


@kernel
def add(pool, job, worker, row, flags, memory, place):
    """Take in a packet of the chunk that the row is used for; what is to be done."""
    own = pool.rows[row]
    if own[STATE] == DONE:
        pool.counters[DUPLICATES] += 1
        pool.counters[REPEATED] += 1
        return TO_SENDER
    if pool.aggregators.congested[0]:
        own[FLAGS] |= ECN
    if flags & OVERFLOW or own[FLAGS] & OVERFLOW:
        return _add_floats(pool, job, worker, row, flags, memory, place)
    known = pool.seen[row, worker] != 0
    if known:
        pool.counters[DUPLICATES] += 1
        if not flags & AGAIN:
            return NOTHING
    count = own[COUNT]
    codes = memory.i32[place, 2 * HEADER_WORDS : 2 * HEADER_WORDS + (0 if known else count)]
    pool.seen[row, worker] = _ALL_PARTS
    if flags & AGAIN:
        if own[AGGREGATOR] >= 0:
            pool.counters[FLUSHED] += 1
            _flush(pool, job, row)
        if not known:
            _merge(pool, job, row, codes, 1)
    elif _aggregate(pool, job, row, codes):
        if pool.aggregators.counts[own[AGGREGATOR]] == pool.facts[job, CHILDREN]:
            _flush(pool, job, row)
    else:
        pool.counters[COLLISIONS] += 1
        own[FLAGS] |= COLLISION
        _merge(pool, job, row, codes, 1)
    if own[MISSING]:
        return NOTHING
    if own[LANES] == FIXED32 and fixed_point.is_saturated(pool.values.i32[row, :count]):
        _ask_for_floats(pool, job, row)
        return TO_ALL
    own[STATE] = DONE
    pool.counters[RESULTS] += 1
    return TO_ALL


@inlined
def _aggregate(pool, job, row, codes):
    """Add a packet to the chunk's aggregator, unless that is another's; whether it was not."""
    own, aggregators = pool.rows[row], pool.aggregators
    place = own[AGGREGATOR]
    if place >= 0:
        fixed_point.add_saturating(aggregators.values[place, : codes.size], codes)
        aggregators.counts[place] += 1
        return True
    place = place_of(pool.jobs[job], own[EPOCH], own[CHUNK], aggregators.owners.size)
    if aggregators.owners[place] >= 0:
        return False
    aggregators.owners[place], own[AGGREGATOR] = row, place
    aggregators.counts[place] = 1
    copy(codes, aggregators.values[place, : codes.size])
    return True


@kernel
def _flush(pool, job, row):
    """Give the server what the row's aggregator has."""
    place = pool.rows[row, AGGREGATOR]
    codes = pool.aggregators.values[place, : pool.rows[row, COUNT]]
    _merge(pool, job, row, codes, pool.aggregators.counts[place])
    release(pool, row)


@kernel
def _merge(pool, job, row, codes, packets):
    """Add the sum of so many packets at the server."""
    own = pool.rows[row]
    total = pool.values.i32[row, : codes.size]
    too_large = own[LANES] == FIXED32 and fixed_point.is_saturated(codes)
    if own[MISSING] == pool.facts[job, CHILDREN] * PARTS or too_large:
        copy(codes, total)  # what is too large stays so until all packets are here
    else:
        fixed_point.add_saturating(total, codes)
    own[MISSING] -= packets * PARTS


@kernel
def _ask_for_floats(pool, job, row):
    """Start the chunk anew."""
    own = pool.rows[row]
    pool.counters[OVERFLOWS] += 1
    release(pool, row)
    own[FLAGS] |= OVERFLOW
    own[MISSING] = pool.facts[job, CHILDREN] * PARTS
    for worker in range(pool.facts[job, CHILDREN]):
        pool.seen[row, worker] = 0


@kernel
def _add_floats(pool, job, worker, row, flags, memory, place):
    own = pool.rows[row]
    if not flags & OVERFLOW:
        return TO_SENDER  # who has not heard yet that floats are asked for
    begun = own[FLAGS] & OVERFLOW != 0
    if not begun:
        _ask_for_floats(pool, job, row)
    elif pool.seen[row, worker]:
        pool.counters[DUPLICATES] += 1
        return NOTHING
    count, headroom = own[COUNT], pool.facts[job, HEADROOM]
    x = memory.f32[place, 2 * HEADER_WORDS : 2 * HEADER_WORDS + count]
    window, signs = pool.window[row, :count], pool.signs[row, :count]
    limbs, special = pool.limbs[row, :count], pool.special[row, :count]
    if own[MISSING] == pool.facts[job, CHILDREN] * PARTS:
        own[EXPONENT] = exact.first(x, headroom, window, signs, limbs, special)
    else:
        own[EXPONENT] = exact.add(x, headroom, own[EXPONENT], window, signs, limbs, special)
    pool.seen[row, worker] = _ALL_PARTS
    own[MISSING] -= PARTS
    if own[MISSING]:
        return NOTHING if begun else TO_ALL
    exact.finish(own[EXPONENT], window, signs, limbs, special, pool.values.f32[row, :count])
    own[STATE] = DONE
    pool.counters[RESULTS] += 1
    return TO_ALL
