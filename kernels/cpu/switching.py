"""The loops of an aggregating switch and of its workers over UDP: batches of packets, no Python in between.

Both go by a `cursor`, int64: how many packets of the last batch there are, and which is the next; so a loop that
returns for Python to look at a packet goes on behind it.
"""

import errno

import numpy as np

from collcomp.kernels.cpu import udp
from collcomp.kernels.cpu.common import random32
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packets import HEADER_NBYTES, PARTS, RESULT
from collcomp.kernels.cpu.progress import MISSING
from collcomp.kernels.cpu.registers import CHILDREN, LOST, MALFORMED, PARENT, RECEIVED
from collcomp.kernels.cpu.switch import NOTHING, TO_ALL, TO_PARENT, TO_SENDER, receive, write_partial, write_result
from collcomp.kernels.cpu.worker import accept, next_due, prepare

__all__ = ["COMPLETE", "CONTROL", "TIME", "exchange", "serve"]

#: Why a worker's loop returns: it has all sums; there is a control packet; its time is over.
COMPLETE, CONTROL, TIME = range(3)

# Seconds that a loop waits at once for room in the socket's buffer, and after which the rest counts as lost.
_ROOM_S, _MOST_ROOM_S = 0.001, 1.0


@kernel
def _flush(fd, messages, n):
    """Send the first `n` messages; 0, or the last -errno, whose message counts as lost."""
    start, code, end = 0, 0, udp.now() + _MOST_ROOM_S
    while start < n and udp.now() < end:
        sent = udp.send(fd, messages, start, n - start)
        if sent == 0:
            udp.wait(fd, _ROOM_S, True)
        elif sent > 0:
            start += sent
        elif sent != -errno.ECONNREFUSED:
            start, code = start + 1, sent
    return code


@inlined
def _is_lost(pool, luck, threshold):
    """Whether chance takes a packet."""
    if threshold == 0:
        return False
    luck[1] += 1
    lost = np.int64(random32(luck[0], luck[1])) < threshold
    pool.counters[LOST] += lost
    return lost


@kernel
def serve(
    fd, pool, memory, names, incoming, cursor, outgoing, iovecs, headers, payloads, luck, threshold, mark_nbytes, until
):
    """Take in packets and send sums until the time `until`, or until Python is needed.

    Parameters
    ----------
    fd : int
        The socket.
    pool : Pool
    memory : Views
        Where packets are received; `names`, uint64 (n, 2), where from; `incoming` the messages that say so.
    cursor : ndarray of int64, shape (2,)
    outgoing, iovecs : ndarray
        Messages to be sent; `headers`, uint64 (n, 6), and `payloads`, Views, are their memory.
    luck : ndarray of uint64, shape (2,)
        Random numbers: key and counter.
    threshold : int
        Of 2**32 packets in each direction, how many get lost.
    mark_nbytes : int
        Sums are marked while queues to be sent are so long; 0 for never.

    Returns
    -------
    tuple of int
        As `collcomp.kernels.cpu.switch.receive`, where the packet is ``cursor[1] - 1``; `NOTHING` when the time is
        over. -errno in place of the action where the socket failed.
    """
    most = outgoing.shape[0] - PARTS
    while True:
        queued = 0
        while cursor[1] < cursor[0]:
            i = cursor[1]
            cursor[1] += 1
            if _is_lost(pool, luck, threshold):
                continue
            if udp.truncated(incoming, i):
                pool.counters[RECEIVED] += 1
                pool.counters[MALFORMED] += 1
                continue
            now = udp.now()
            action, row, job, worker = receive(pool, memory, i, udp.length(incoming, i), names[i, 0], now)
            if action == NOTHING:
                continue
            if action in (TO_SENDER, TO_ALL):
                first, last = (worker, worker + 1) if action == TO_SENDER else (0, pool.facts[job, CHILDREN])
                for dest in range(first, last):
                    if _is_lost(pool, luck, threshold):
                        continue
                    nbytes = write_result(pool, row, pool.jobs[job], dest, headers[queued])
                    udp.set_message(
                        iovecs, outgoing, queued, udp.address(pool.names[job, dest]), udp.address(headers[queued]),
                        HEADER_NBYTES, udp.address(pool.values.u8[row]), nbytes,
                    )  # fmt: skip
                    queued += 1
                    if queued >= most:
                        _flush(fd, outgoing, queued)
                        queued = 0
                continue
            if action == TO_PARENT:
                for part in range(PARTS):
                    nbytes = write_partial(
                        pool, row, pool.jobs[job], pool.facts[job, PARENT], part, headers[queued], payloads, queued
                    )
                    if nbytes < 0:
                        break
                    udp.set_message(
                        iovecs, outgoing, queued, udp.address(pool.parents[job]), udp.address(headers[queued]),
                        HEADER_NBYTES, udp.address(payloads.u8[queued]), nbytes,
                    )  # fmt: skip
                    queued += 1
            else:
                _flush(fd, outgoing, queued)
                return action, row, job, worker
            if queued >= most:
                _flush(fd, outgoing, queued)
                queued = 0
        _flush(fd, outgoing, queued)  # a worker that cannot be reached is no reason to leave the others
        n = udp.receive(fd, incoming)
        if n < 0 and n != -errno.ECONNREFUSED:
            return n, -1, -1, -1
        cursor[0], cursor[1] = max(n, 0), 0
        if mark_nbytes > 0:
            pool.aggregators.congested[0] = udp.unsent(fd) >= mark_nbytes
        now = udp.now()
        if now >= until:  # with packets still coming, too: signals want to be looked at
            return NOTHING, -1, -1, -1
        if n == 0:
            udp.wait(fd, until - now, False)


@kernel
def exchange(fd, worker, memory, incoming, cursor, outgoing, iovecs, headers, until):
    """Send what is due and take in sums, until all are there, the time is `until`, or Python is needed.

    Parameters are as in `serve`; a connected socket. The control packet, where there is one, is ``cursor[1] - 1``.

    Returns
    -------
    int
        `COMPLETE`, `CONTROL`, `TIME`, or -errno.
    """
    while True:
        while cursor[1] < cursor[0]:
            i = cursor[1]
            cursor[1] += 1
            nbytes = udp.length(incoming, i)
            if udp.truncated(incoming, i) or accept(worker, memory.u8[i], memory.u64[i], nbytes, udp.now()):
                continue
            if nbytes >= HEADER_NBYTES and (memory.u64[i, 0] >> np.uint64(32)) & np.uint64(255) > np.uint64(RESULT):
                return CONTROL
        if worker.facts[MISSING] == 0:
            return COMPLETE
        now = udp.now()
        queued = 0
        slot, soonest = next_due(worker, now)
        while slot >= 0 and queued < outgoing.shape[0]:
            low, nbytes = prepare(worker, slot, now, headers[queued])
            udp.set_message(
                iovecs, outgoing, queued, 0, udp.address(headers[queued]), HEADER_NBYTES,
                udp.address(worker.payload) + low, nbytes,
            )  # fmt: skip
            queued += 1
            slot, soonest = next_due(worker, now)
        code = _flush(fd, outgoing, queued)
        if code < 0:
            return code
        n = udp.receive(fd, incoming)
        if n < 0:
            return n
        cursor[0], cursor[1] = n, 0
        if now >= until:
            return TIME
        if n == 0:
            udp.wait(fd, min(soonest, until) - udp.now(), False)
