"""What a worker does that sends a message to an aggregating switch, chunk by chunk, and takes in the sums.

Chunk c of a message stands in slot ``c % slots`` of the job's part of the pool. A slot's next chunk is sent when the
sum of the one before has arrived (self-clocking), or sent again when its timer has run out. `worker` is a
`collcomp.switch.worker.Worker`.

In block fixed point (`BLOCK32`) all workers need one exponent for the elements of a chunk before they can send them. So
chunk c carries the exponent of elements whose int32 follow in the slot's next chunk, c + slots: the first chunk of a
slot carries nothing else, the last one no exponent. Source: Sapio et al., NSDI 2021 (section 4.2).

In fixed point (`FIXED32`) a chunk with numbers that are too large is sent as floats; so are those of which the switch
asks for floats. Sums of these lanes and of `SAT32` tell whether a queue was long, and the window follows: it is halved,
or grows by 1,500 bytes of packets as ATP has them. Source: Lao et al., NSDI 2021, and its public worker (in-ATP/ATP).
"""

import numpy as np

from collcomp.kernels.cpu import fixed_point
from collcomp.kernels.cpu.common import copy
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packets import (
    ADD,
    AGAIN,
    BLOCK32,
    ECN,
    FIXED32,
    HEADER_NBYTES,
    MAGIC,
    OVERFLOW,
    REQUEST,
    RESULT,
    SAT32,
    WAITED_S,
)
from collcomp.kernels.cpu.progress import (
    ADAPTIVE,
    BACK_OFF,
    BACKED_OFF,
    CEILING,
    CHUNK_NBYTES,
    CHUNKS,
    EPOCH,
    FLOOR,
    IN_FLIGHT,
    JOB,
    LANES,
    LEAD,
    LEFT,
    MARKED,
    MISSING,
    NUMBER,
    PATIENCE,
    PATIENT,
    RESENT,
    SENT,
    SENT_NBYTES,
    SIGNATURE,
    SLOTS,
    SMOOTHED,
    THRESHOLD,
    TIMER,
    VARIATION,
    WAITED,
    WIDTH,
    WINDOW,
    WORKERS,
)

__all__ = ["accept", "next_due", "prepare", "start"]

_MOST_BACK_OFF = 8.0
# A round trip, at least: 0 means that none is measured.
_SHORTEST_S = 1e-6
# Packets by which a window grows: 1,500 bytes of 308 each.
_GROWTH = 4


@kernel
def start(worker, now):
    """Begin an operation whose facts are set: the first chunk of every slot is due."""
    facts = worker.facts
    chunks = facts[CHUNKS] - facts[LEAD]
    facts[MISSING], facts[IN_FLIGHT] = chunks + min(chunks, facts[LEAD]), 0
    facts[SENT], facts[RESENT], facts[SENT_NBYTES] = 0, 0, 0
    facts[LEFT], facts[MARKED] = facts[WINDOW], 0
    for slot in range(facts[SLOTS]):
        worker.chunks[slot] = slot if slot < chunks else -1
        worker.tries[slot] = worker.floats[slot] = 0
        worker.due[slot] = now if slot < chunks else np.inf


@kernel
def next_due(worker, now):
    """A slot whose chunk is to be sent now, or -1; and when the next one will be, if no sum arrives before."""
    facts, soonest, found = worker.facts, np.inf, -1
    slots = min(facts[SLOTS], facts[CHUNKS])
    narrow, full = facts[WINDOW] < facts[SLOTS], facts[IN_FLIGHT] >= facts[WINDOW]
    first = facts[CHUNKS]
    if narrow and full:
        for slot in range(slots):
            if 0 <= worker.chunks[slot] < first:
                first = worker.chunks[slot]
    for slot in range(slots):
        chunk = worker.chunks[slot]
        # The first chunk that is missing goes beyond the window: others may wait for it while theirs are full, too.
        if chunk < 0 or (worker.tries[slot] == 0 and full and chunk != first):
            continue
        if worker.due[slot] > now:
            soonest = min(soonest, worker.due[slot])
        elif not narrow:
            return slot, now
        elif found < 0 or chunk < worker.chunks[found]:
            found = slot  # in order, so that workers whose windows differ are at the same chunks
    return found, soonest if found < 0 else now


@inlined
def _timer(worker, tries):
    """Seconds to wait for the sum of a chunk that has been sent `tries` times."""
    clock = worker.clock
    if not clock[ADAPTIVE]:
        return clock[TIMER]
    seconds = clock[TIMER]
    if clock[SMOOTHED] > 0:
        margin = max(clock[FLOOR], clock[SMOOTHED] + 4 * clock[VARIATION])
        seconds = clock[SMOOTHED] + margin + clock[WAITED]
    return min(seconds * max(2.0 ** (tries - 1), clock[BACK_OFF]), max(seconds, clock[CEILING]))


@inlined
def _bounds(facts, total, chunk):
    """Where the elements that a chunk carries lie in a message of so many bytes: the first byte, and how many."""
    if chunk < facts[LEAD]:
        return 0, 0
    low = (chunk - facts[LEAD]) * facts[CHUNK_NBYTES]
    return low, min(facts[CHUNK_NBYTES], total - low)


@inlined
def _block_scale(worker, slot):
    return fixed_point.block_scale(worker.facts[WORKERS], worker.exponents[slot])


@inlined
def _stage(worker, slot, low, nbytes):
    """Write what is sent of the elements from byte `low` on to the slot's place in `worker.payload`; where that is."""
    place = slot * worker.facts[CHUNK_NBYTES]
    source, target = worker.send[low : low + nbytes], worker.payload[place : place + nbytes]
    x = source.view(np.float32)
    if worker.facts[LANES] == BLOCK32:
        fixed_point.quantise(x, _block_scale(worker, slot), target.view(np.int32))
    elif worker.floats[slot] or fixed_point.exceeds(x):
        worker.floats[slot] = 1
        copy(source, target)
    else:
        fixed_point.quantise(x, fixed_point.FACTOR, target.view(np.int32))
    return place


@kernel
def prepare(worker, slot, now, header):
    """Write the header of the slot's chunk and start its timer; first byte and bytes of `worker.payload` to send."""
    facts, clock = worker.facts, worker.clock
    chunk, flags, exponent = worker.chunks[slot], np.int64(0), np.int64(0)
    low, nbytes = _bounds(facts, worker.send.size, chunk)
    if facts[LANES] == BLOCK32:
        if chunk < facts[CHUNKS] - facts[LEAD]:
            start, length = _bounds(facts, worker.send.size, chunk + facts[LEAD])
            exponent = fixed_point.exponent(worker.send[start : start + length].view(np.float32))
        else:
            exponent = np.int64(fixed_point.LOWEST_EXPONENT)
    if facts[LANES] in (BLOCK32, FIXED32):
        low = _stage(worker, slot, low, nbytes)
        flags |= OVERFLOW if worker.floats[slot] else 0
    if facts[LANES] in (SAT32, FIXED32) and worker.tries[slot]:
        flags |= AGAIN
    if worker.tries[slot] == 0:
        facts[IN_FLIGHT] += 1
    else:
        facts[RESENT] += 1
        if clock[ADAPTIVE]:
            # All chunks wait longer until one has told the round-trip time: where queues have grown, what is sent again
            # makes them longer.
            if now >= clock[BACKED_OFF]:
                clock[BACK_OFF] = min(2 * clock[BACK_OFF], _MOST_BACK_OFF)
                clock[BACKED_OFF] = now + _timer(worker, 1)
        else:
            clock[THRESHOLD] -= 1
            if clock[THRESHOLD] <= 0:
                clock[TIMER] = min(2 * clock[TIMER], clock[CEILING])
                clock[PATIENCE] += PATIENT
                clock[THRESHOLD] = clock[PATIENCE]
    facts[SENT] += 1
    facts[SENT_NBYTES] += HEADER_NBYTES + nbytes
    worker.tries[slot] += 1
    worker.sent[slot] = now
    worker.due[slot] = now + _timer(worker, worker.tries[slot])
    header[0] = np.uint64(MAGIC | ADD << 32 | facts[LANES] << 40) | np.uint64(facts[NUMBER]) << np.uint64(48)
    header[1] = np.uint64(facts[JOB])
    header[2] = np.uint64(facts[EPOCH])
    header[3] = np.uint64(chunk) | np.uint64(slot) << np.uint64(32)
    header[4] = np.uint64(facts[SIGNATURE]) | np.uint64(nbytes // facts[WIDTH]) << np.uint64(32)
    header[5] = np.uint64(exponent & 0xFFFFFFFF | flags << 32)
    return low, nbytes


@kernel
def accept(worker, packet, words, nbytes, now):
    """Take in a packet, if it is about a chunk that this worker waits for: the sum, or that floats are asked for.

    Whether it is. `packet` and `words` are the same memory, uint8 and uint64.
    """
    facts = worker.facts
    if nbytes < HEADER_NBYTES or words[0] & np.uint64(0xFFFFFFFFFF) != np.uint64(MAGIC | RESULT << 32):
        return False
    slot, chunk = np.int64(words[3] >> np.uint64(32)), np.int64(words[3] & np.uint64(0xFFFFFFFF))
    if np.int64(words[1]) != facts[JOB] or np.int64(words[2]) != facts[EPOCH] or slot >= facts[SLOTS]:
        return False
    low, length = _bounds(facts, worker.recv.size, chunk)
    flags = np.int64(words[5] >> np.uint64(32)) & 0xFFFF
    if worker.chunks[slot] != chunk or nbytes - HEADER_NBYTES != (0 if flags & REQUEST else length):
        return False
    if flags & REQUEST:
        if not worker.floats[slot]:
            worker.floats[slot], worker.due[slot] = 1, now
        return True
    data = packet[HEADER_NBYTES : HEADER_NBYTES + length]
    y = worker.recv[low : low + length]
    if facts[LANES] == BLOCK32:
        fixed_point.dequantise(data.view(np.int32), _block_scale(worker, slot), y.view(np.float32))
        worker.exponents[slot] = np.int64(np.int32(words[5] & np.uint64(0xFFFFFFFF)))
    elif facts[LANES] == FIXED32 and not flags & OVERFLOW:
        fixed_point.dequantise(data.view(np.int32), fixed_point.FACTOR, y.view(np.float32))
    else:
        copy(data, y)
    if facts[LANES] in (SAT32, FIXED32):
        _follow(facts, flags & ECN)
    if worker.tries[slot] == 1:
        waited = np.int64(words[5] >> np.uint64(48)) * WAITED_S
        _measure(worker.clock, max(now - worker.sent[slot] - waited, _SHORTEST_S), waited)
    elif worker.clock[ADAPTIVE] and worker.clock[SMOOTHED] == 0:
        # Nothing would ever be measured where the round trip takes longer than the first timer.
        worker.clock[TIMER] = max(worker.clock[TIMER], worker.due[slot] - worker.sent[slot])
    chunk += facts[SLOTS]
    facts[MISSING] -= 1
    facts[IN_FLIGHT] -= 1
    worker.tries[slot] = worker.floats[slot] = 0
    worker.chunks[slot] = chunk if chunk < facts[CHUNKS] else -1
    worker.due[slot] = now if chunk < facts[CHUNKS] else np.inf
    return True


@inlined
def _measure(clock, seconds, waited):
    """Smooth round-trip times as TCP does (Jacobson 1988); chunks that were sent twice tell nothing (Karn 1987).

    The time for which the switch waited for others counts by its mean alone. If it were part of the round trip, a
    packet that one worker lost would make the others wait longer for the next that they lose, and so on without end.
    """
    clock[BACK_OFF] = 1
    clock[WAITED] += (waited - clock[WAITED]) / 8
    if clock[SMOOTHED] == 0:
        clock[SMOOTHED], clock[VARIATION] = seconds, seconds / 2
    else:
        clock[VARIATION] += (abs(seconds - clock[SMOOTHED]) - clock[VARIATION]) / 4
        clock[SMOOTHED] += (seconds - clock[SMOOTHED]) / 8


@inlined
def _follow(facts, mark):
    """Halve the window once all sums of one are here, if one of them was marked, or let it grow."""
    facts[LEFT] -= 1
    facts[MARKED] |= mark
    if facts[LEFT] <= 0:
        if facts[MARKED]:
            facts[WINDOW] = max(1, facts[WINDOW] // 2)
        else:
            facts[WINDOW] = min(facts[SLOTS], facts[WINDOW] + _GROWTH)
        facts[LEFT], facts[MARKED] = facts[WINDOW], 0
