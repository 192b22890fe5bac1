"""The program of an aggregating switch: what it does with one packet.

`pool` is a `collcomp.switch.pool.Pool`. A slot has two rows of registers, its versions. Operations and chunks
ascend, so the pair (epoch, chunk) tells which use of a slot a packet is for: the row that has the pair, or, where it is
later than both, the row with the earlier pair, which is claimed. A worker sends the next chunk of a slot only when it
has the sum of the one before: once all have contributed to one version, nobody needs the other any more.

Source of the scheme: Sapio et al., "Scaling Distributed Machine Learning with In-Network Aggregation", NSDI 2021
(algorithms 3 and 4). There a packet says its version in one bit, and a duplicate that is more than a window late would
be added to another chunk; here the pair of numbers tells it.
"""

import numpy as np

from collcomp.kernels.cpu import atp, exact
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packets import (
    ADD,
    ADD8,
    ADD16,
    ADD32,
    ADD64,
    AGAIN,
    BFLOAT16,
    BLOCK32,
    FIXED32,
    FLOAT16,
    FLOAT32,
    HEADER_NBYTES,
    HEADER_WORDS,
    KINDS,
    MAGIC,
    MAX8,
    MAX16,
    MAX32,
    MAX64,
    NARROW,
    NARROW_NBYTES,
    OR8,
    OVERFLOW,
    PARTS,
    REQUEST,
    RESULT,
    SAT32,
    WAITED_S,
    WIDE,
    WIDE_NBYTES,
    WIDTHS,
)
from collcomp.kernels.cpu.registers import (
    CHILDREN,
    CHUNK,
    COLLECTING,
    CONTROL,
    COUNT,
    DIFFERS,
    DONE,
    DUPLICATES,
    EARLY,
    EPOCH,
    EXPONENT,
    FAILED,
    FIRST,
    FLAGS,
    FLOATS,
    GONE,
    HEADROOM,
    LANES,
    MALFORMED,
    MISSING,
    NOTHING,
    PARENT,
    PAYLOAD,
    RECEIVED,
    REPEATED,
    RESULTS,
    SIGNATURE,
    SLOTS,
    STALE,
    STATE,
    STRANGERS,
    TO_ALL,
    TO_PARENT,
    TO_SENDER,
    UNKNOWN,
    UNLIKE,
    WAITING,
    WITHOUT_JOB,
)

__all__ = [
    "CONTROL",
    "DIFFERS",
    "GONE",
    "NOTHING",
    "TO_ALL",
    "TO_PARENT",
    "TO_SENDER",
    "WITHOUT_JOB",
    "receive",
    "write_partial",
    "write_result",
]

_WIDTHS = np.array(WIDTHS, np.int64)
_ALL_PARTS = (1 << PARTS) - 1


@inlined
def _field(word, shift, bits):
    return np.int64((word >> np.uint64(shift)) & np.uint64((1 << bits) - 1))


@inlined
def _signed32(word):
    low = _field(word, 0, 32)
    return low - (low >> 31 << 32)


@inlined
def _find(jobs, job):
    for j in range(jobs.size):
        if jobs[j] == job:
            return j
    return -1


@inlined
def _bounds(count, part):
    """The elements of a part."""
    return count * part // PARTS, count * (part + 1) // PARTS


@inlined
def _drop(pool, counter):
    pool.counters[counter] += 1
    return NOTHING


@kernel
def receive(pool, memory, place, nbytes, name, now):
    """Take in a packet; what is to be done, the row and the job's index that it is about, and the worker who sent it.

    Parameters
    ----------
    pool : Pool
    memory : Views
        Packets.
    place, nbytes : int
        Which of them, and its length.
    name : uint64
        The address that it came from.
    now : float
        Seconds.
    """
    words = memory.u64[place]
    pool.counters[RECEIVED] += 1
    if nbytes < HEADER_NBYTES or _field(words[0], 0, 32) != MAGIC or _field(words[0], 32, 8) >= KINDS:
        return _drop(pool, MALFORMED), -1, -1, -1
    kind, worker = _field(words[0], 32, 8), _field(words[0], 48, 16)
    if kind not in (ADD, RESULT):
        return CONTROL, -1, -1, worker
    job = _find(pool.jobs, words[1])
    if words[1] == 0 or job < 0:
        pool.counters[UNKNOWN] += 1
        return WITHOUT_JOB, -1, -1, worker
    if kind == RESULT:
        action, row = _result(pool, job, memory.u8[place], words, nbytes, name)
    elif worker >= pool.facts[job, CHILDREN]:
        action, row = _drop(pool, MALFORMED), -1
    elif name != pool.names[job, worker, 0]:
        action, row = _drop(pool, STRANGERS), -1
    else:
        pool.heard[job] = now
        action, row = _add(pool, job, worker, memory, place, nbytes, now)
    return action, row, job, worker


@kernel
def _add(pool, job, worker, memory, place, nbytes, now):
    words = memory.u64[place]
    lanes, flags, part = _field(words[0], 40, 8), _field(words[5], 32, 16), _field(words[5], 48, 16)
    epoch, chunk, slot = np.int64(words[2]), _field(words[3], 0, 32), _field(words[3], 32, 32)
    signature, count, exponent = _field(words[4], 0, 32), _field(words[4], 32, 32), _signed32(words[5])
    facts = pool.facts[job]
    hashed = pool.aggregators.owners.size > 0
    if (
        epoch < 1
        or hashed != (lanes in (SAT32, FIXED32))
        or not _well_formed(facts, lanes, flags, part, exponent, count, slot, chunk, nbytes - HEADER_NBYTES)
    ):
        return _drop(pool, MALFORMED), -1
    if epoch <= pool.failed[job]:
        return _late(pool, 2 * (facts[FIRST] + slot), epoch, chunk, part)
    row = _row(pool, 2 * (facts[FIRST] + slot), epoch, chunk)
    if row < 0:
        return _drop(pool, STALE if row == -1 else EARLY), -1
    own = pool.rows[row]
    if own[EPOCH] != epoch or own[CHUNK] != chunk:
        own[EPOCH], own[CHUNK] = epoch, chunk
        own[SIGNATURE], own[LANES], own[COUNT] = signature, lanes, count
        own[MISSING], own[STATE], own[FLAGS] = facts[CHILDREN] * PARTS, COLLECTING, 0
        if hashed:
            atp.release(pool, row)  # of an operation that failed
        # Not only while the other version is completed: of an operation that failed, bits are left.
        for child in range(facts[CHILDREN]):
            pool.seen[row, child] = 0
    elif own[SIGNATURE] != signature or own[LANES] != lanes or own[COUNT] != count:
        pool.counters[UNLIKE] += 1
        pool.failed[job] = epoch
        return DIFFERS, -1
    if hashed:
        if pool.seen[row, worker] == 0:
            pool.arrived[row, worker] = now
        action = atp.add(pool, job, worker, row, flags, memory, place)
        if action == TO_ALL:
            pool.completed[row, 0], pool.completed[row, 1] = now, 0.0
        return action, row
    parts = 1 << part if flags == WIDE else _ALL_PARTS
    if own[STATE] != COLLECTING or np.int64(pool.seen[row, worker]) & parts:
        pool.counters[DUPLICATES] += 1
        # One answer to all parts of a repeat: else repeats would grow eightfold on each level of a tree.
        if own[STATE] == DONE and part == 0:
            pool.counters[REPEATED] += 1
            return TO_SENDER, row
        return (TO_PARENT if own[STATE] == WAITING and part == 0 else NOTHING), row
    pool.seen[row, worker] |= np.uint8(parts)
    pool.arrived[row, worker] = now
    first = own[MISSING] == facts[CHILDREN] * PARTS
    if lanes > BFLOAT16:
        own[EXPONENT] = exponent if first else max(own[EXPONENT], exponent)
        _combine(pool, row, lanes, first, memory, place)
    elif flags == 0:
        _add_floats(pool, row, lanes, facts[HEADROOM], first, memory, place)
    else:
        _add_partial(pool, row, facts[HEADROOM], first, exponent, flags, part, memory, place)
    own[MISSING] -= PARTS if parts == _ALL_PARTS else 1
    if own[MISSING]:
        return NOTHING, row
    pool.completed[row, 0], pool.completed[row, 1] = now, 0.0
    if facts[PARENT] >= 0:
        own[STATE] = WAITING
        return TO_PARENT, row
    if lanes <= BFLOAT16:
        _round(pool, row)
    own[STATE] = DONE
    pool.counters[RESULTS] += 1
    return TO_ALL, row


@inlined
def _late(pool, first, epoch, chunk, part):
    """What is there for a worker whose operation has failed, or that is not yet at the one that has."""
    for row in (first, first + 1):
        own = pool.rows[row]
        if own[EPOCH] == epoch and own[CHUNK] == chunk and own[STATE] == DONE:
            if part:
                return NOTHING, row
            pool.counters[REPEATED] += 1
            return TO_SENDER, row
    pool.counters[FAILED] += 1
    return GONE, -1


@inlined
def _well_formed(facts, lanes, flags, part, exponent, count, slot, chunk, nbytes):
    if lanes >= _WIDTHS.size or slot >= facts[SLOTS] or chunk % facts[SLOTS] != slot or part >= PARTS:
        return False
    if count * _WIDTHS[lanes] > facts[PAYLOAD] or (lanes <= BFLOAT16 and count > facts[FLOATS]):
        return False
    if flags == NARROW:
        known = exponent == exact.EMPTY or exact.LOWEST <= exponent <= exact.HIGHEST
        return known and lanes <= BFLOAT16 and nbytes == count * NARROW_NBYTES
    if flags == WIDE:
        low, high = _bounds(count, part)
        return lanes <= BFLOAT16 and nbytes == (high - low) * WIDE_NBYTES
    if lanes == FIXED32:
        flags &= ~OVERFLOW
    if lanes in (SAT32, FIXED32):
        flags &= ~AGAIN
    return flags == 0 and nbytes == count * _WIDTHS[lanes]


@inlined
def _row(pool, first, epoch, chunk):
    """Which of two rows a packet is for; -1 where it is too late, -2 where it is too early."""
    rows = pool.rows
    newer = first
    if rows[first + 1, EPOCH] > rows[first, EPOCH] or (
        rows[first + 1, EPOCH] == rows[first, EPOCH] and rows[first + 1, CHUNK] > rows[first, CHUNK]
    ):
        newer = first + 1
    for row in (newer, newer ^ 1):
        if rows[row, EPOCH] == epoch and rows[row, CHUNK] == chunk:
            return row
    if rows[newer, EPOCH] > epoch or (rows[newer, EPOCH] == epoch and rows[newer, CHUNK] > chunk):
        return -1
    older = newer ^ 1
    if rows[newer, EPOCH] == epoch:
        return older if rows[newer, STATE] == DONE else -2
    # A worker may have given up on an operation that others still wait for. Its row is of no use any more, but the
    # other one may have a sum that somebody still misses.
    return older if rows[newer, STATE] == DONE else newer


@kernel
def _add_floats(pool, row, lanes, headroom, first, memory, place):
    count, base = pool.rows[row, COUNT], pool.rows[row, EXPONENT]
    window, signs = pool.window[row, :count], pool.signs[row, :count]
    limbs, special = pool.limbs[row, :count], pool.special[row, :count]
    if lanes == FLOAT32:
        x = memory.f32[place, 2 * HEADER_WORDS : 2 * HEADER_WORDS + count]
        base = _add_to(first, x, headroom, base, window, signs, limbs, special)
    elif lanes == FLOAT16:
        x16 = memory.u16[place, 4 * HEADER_WORDS : 4 * HEADER_WORDS + count]
        base = _add_to(first, x16, headroom, base, window, signs, limbs, special)
    else:
        b16 = memory.i16[place, 4 * HEADER_WORDS : 4 * HEADER_WORDS + count]
        base = _add_to(first, b16, headroom, base, window, signs, limbs, special)
    pool.rows[row, EXPONENT] = base


@inlined
def _add_to(first, x, headroom, base, window, signs, limbs, special):
    if first:
        return exact.first(x, headroom, window, signs, limbs, special)
    return exact.add(x, headroom, base, window, signs, limbs, special)


@kernel
def _round(pool, row):
    """Write the rounded sums where they are sent from."""
    lanes, count, base = pool.rows[row, LANES], pool.rows[row, COUNT], pool.rows[row, EXPONENT]
    window, signs = pool.window[row, :count], pool.signs[row, :count]
    limbs, special = pool.limbs[row, :count], pool.special[row, :count]
    if lanes == FLOAT32:
        exact.finish(base, window, signs, limbs, special, pool.values.f32[row, :count])
    elif lanes == FLOAT16:
        exact.finish(base, window, signs, limbs, special, pool.values.u16[row, :count])
    else:
        exact.finish(base, window, signs, limbs, special, pool.values.i16[row, :count])


@kernel
def _combine(pool, row, lanes, first, memory, place):
    count = pool.rows[row, COUNT]
    if lanes in (ADD8, MAX8, OR8):
        x = memory.u8[place, HEADER_NBYTES : HEADER_NBYTES + count]
        _combine_lanes(pool.values.u8[row, :count], x, lanes, first)
    elif lanes in (ADD16, MAX16):
        x16 = memory.u16[place, 4 * HEADER_WORDS : 4 * HEADER_WORDS + count]
        _combine_lanes(pool.values.u16[row, :count], x16, lanes, first)
    elif lanes in (ADD32, MAX32, BLOCK32):
        x32 = memory.u32[place, 2 * HEADER_WORDS : 2 * HEADER_WORDS + count]
        _combine_lanes(pool.values.u32[row, :count], x32, MAX32 if lanes == MAX32 else ADD32, first)
    else:
        x64 = memory.u64[place, HEADER_WORDS : HEADER_WORDS + count]
        _combine_lanes(pool.values.u64[row, :count], x64, lanes, first)


@inlined
def _combine_lanes(total, x, lanes, first):
    if first:
        for i in range(x.size):
            total[i] = x[i]
    elif lanes <= ADD64:
        for i in range(x.size):
            total[i] += x[i]
    elif lanes <= MAX64:
        for i in range(x.size):
            total[i] = max(total[i], x[i])
    else:
        for i in range(x.size):
            total[i] |= x[i]


@inlined
def _write_header(pool, row, kind, job, worker, flags, part, header):
    own = pool.rows[row]
    slot = row // 2 - pool.facts[_find(pool.jobs, job), FIRST]
    header[0] = np.uint64(MAGIC | kind << 32 | own[LANES] << 40) | np.uint64(worker) << np.uint64(48)
    header[1] = job
    header[2] = np.uint64(own[EPOCH])
    header[3] = np.uint64(own[CHUNK]) | np.uint64(slot) << np.uint64(32)
    header[4] = np.uint64(own[SIGNATURE]) | np.uint64(own[COUNT]) << np.uint64(32)
    header[5] = np.uint64(own[EXPONENT] & 0xFFFFFFFF | flags << 32 | part << 48)


@kernel
def write_result(pool, row, job, worker, header):
    """Write the header of a row's sum; bytes of the payload, which is sent from the row."""
    own = pool.rows[row]
    done = own[STATE] == DONE
    waited = (pool.completed[row, 0] - pool.arrived[row, worker] + pool.completed[row, 1]) / WAITED_S
    part = np.int64(min(max(waited, 0.0), 65535.0))
    _write_header(pool, row, RESULT, job, worker, own[FLAGS] | (0 if done else REQUEST), part, header)
    return own[COUNT] * _WIDTHS[own[LANES]] if done else 0


# ---------------------------------------------------------------------- trees


@kernel
def write_partial(pool, row, job, worker, part, header, memory, place):
    """Write what a row has summed for the switch above; bytes of the payload, or -1 where there is no such part.

    The payload goes into row `place` of `memory`.

    Integers and narrow sums are one part.
    """
    count, lanes, base = pool.rows[row, COUNT], pool.rows[row, LANES], pool.rows[row, EXPONENT]
    wide = lanes <= BFLOAT16 and base == exact.WIDE
    if part and not wide:
        return -1
    flags = 0 if lanes > BFLOAT16 else (WIDE if wide else NARROW)
    _write_header(pool, row, ADD, job, worker, flags, part, header)
    words, data = memory.i64[place], memory.u8[place]
    if flags == 0:
        nbytes = count * _WIDTHS[lanes]
        for i in range(nbytes):
            data[i] = pool.values.u8[row, i]
        return nbytes
    if flags == NARROW:
        for i in range(count):
            words[i] = pool.window[row, i] if base != exact.EMPTY else 0
            data[8 * count + i] = pool.signs[row, i]
        return count * NARROW_NBYTES
    low, high = _bounds(count, part)
    n = high - low
    for i in range(n):
        for j in range(exact.LIMBS):
            words[i * exact.LIMBS + j] = pool.limbs[row, low + i, j]
        data[8 * exact.LIMBS * n + i] = pool.signs[row, low + i]
        data[(8 * exact.LIMBS + 1) * n + i] = pool.special[row, low + i]
    return n * WIDE_NBYTES


@kernel
def _add_partial(pool, row, headroom, first, exponent, flags, part, memory, place):
    """Add another switch's unrounded sum, or the part of it that is in the packet."""
    count, base = pool.rows[row, COUNT], pool.rows[row, EXPONENT]
    words, data = memory.i64[place, HEADER_WORDS:], memory.u8[place, HEADER_NBYTES:]
    if first:
        base = exact.EMPTY
        for i in range(count):
            pool.signs[row, i] = 1
    low, high = (0, count) if flags == NARROW else _bounds(count, part)
    n = high - low
    window_in, signs_in = words[: n if flags == NARROW else 0], data[8 * n : 9 * n]
    limbs_in, special_in = words[:0].reshape(0, exact.LIMBS), data[:0]
    if flags == WIDE:
        base = exact.widen(base, pool.window[row, :count], pool.limbs[row, :count], pool.special[row, :count])
        limbs_in = words[: n * exact.LIMBS].reshape(n, exact.LIMBS)
        signs_in, special_in = data[8 * exact.LIMBS * n :][:n], data[(8 * exact.LIMBS + 1) * n :][:n]
        exponent = exact.WIDE
    pool.rows[row, EXPONENT] = exact.add_partial(
        exponent, window_in, signs_in, limbs_in, special_in, headroom, base,
        pool.window[row, low:high], pool.signs[row, low:high], pool.limbs[row, low:high], pool.special[row, low:high],
    )  # fmt: skip


@kernel
def _result(pool, job, packet, words, nbytes, name):
    """What the switch above has summed, which waits in no register until all below have it."""
    facts = pool.facts[job]
    if facts[PARENT] < 0 or name != pool.parents[job, 0]:
        return _drop(pool, STRANGERS), -1
    lanes, count, slot = _field(words[0], 40, 8), _field(words[4], 32, 32), _field(words[3], 32, 32)
    epoch, chunk = np.int64(words[2]), _field(words[3], 0, 32)
    if not _well_formed(facts, lanes, 0, 0, 0, count, slot, chunk, nbytes - HEADER_NBYTES):
        return _drop(pool, MALFORMED), -1
    for row in range(2 * (facts[FIRST] + slot), 2 * (facts[FIRST] + slot) + 2):
        own = pool.rows[row]
        if own[EPOCH] == epoch and own[CHUNK] == chunk and own[STATE] == WAITING:
            if own[LANES] != lanes or own[COUNT] != count:
                return _drop(pool, MALFORMED), -1
            own[EXPONENT] = _signed32(words[5])
            pool.completed[row, 1] = _field(words[5], 48, 16) * WAITED_S
            for i in range(nbytes - HEADER_NBYTES):
                pool.values.u8[row, i] = packet[HEADER_NBYTES + i]
            own[STATE] = DONE
            pool.counters[RESULTS] += 1
            return TO_ALL, row
    return _drop(pool, STALE), -1
