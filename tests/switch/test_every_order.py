"""Every order in which packets of small operations can arrive, be lost, or arrive again.

The network is all packets that were ever sent: each may arrive at any moment, any number of times, or never. That is
every order, every duplicate however late, and every loss, without a bound on copies under way. A timer may run out at
any moment: a packet that is sent again is one that the network has. A state is what the switch and the workers
remember, and what was sent.

Each worker's element of each chunk is a bit of its own, so that no wrong sum can look right.
"""

import collections
import functools

import numpy as np
import pytest

from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets, progress
from collcomp.switch.control import Control
from collcomp.switch.pool import aligned, views_of
from collcomp.switch.programs import EXACT
from collcomp.switch.switch import Switch
from collcomp.switch.worker import begin, make_worker

JOB, SLOTS, ROOT = 7, 2, 100
_KERNELS = cpu.load("worker")
_LENGTH = packets.HEADER_NBYTES + 8


def element(worker, workers, operation, chunk, chunks):
    """A bit that no other has."""
    return 1 << (worker + workers * (chunk + sum(chunks[:operation])))


def expected(workers, operation, chunk, chunks):
    return sum(element(worker, workers, operation, chunk, chunks) for worker in range(workers))


class WrongSumError(AssertionError):
    pass


class Switches:
    """A tree of `Switch`, the root's address first in `ROOT`, ROOT + 1, ...; their memory can be saved and put back."""

    def __init__(self, tree):
        self.all, self.above = [], {}
        self._plant(tree, None)
        ranks = sorted(rank for rank in self.above if rank < ROOT)
        todo = []
        for rank in ranks:
            body = {"size": len(ranks), "ranks": [rank], "slots": SLOTS, "payload": 72, "floats": 4}
            todo.append((self.above[rank], rank, Control(packets.JOIN, JOB, rank, body=body).pack()))
        self.numbers = {}
        while todo:
            target, source, packet = todo.pop()
            if target < ROOT:
                answer = Control.unpack(packet)
                if answer.kind == packets.WELCOME:
                    self.numbers[target] = answer.body["worker"]
            else:
                todo += self.receive(target, source, packet)
        arrays = [
            array
            for switch in self.all
            for pool in [switch.pool]
            for array in (pool.rows, pool.seen, pool.values.u8, pool.failed, pool.window, pool.signs)
        ]
        self.memory = aligned(sum(8 * (-(-array.nbytes // 8)) for array in arrays))
        views, start = [], 0
        for array in arrays:
            view = self.memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            view[:] = array
            views.append(view)
            start += 8 * (-(-array.nbytes // 8))
        for place, switch in enumerate(self.all):
            rows, seen, values, failed, window, signs = views[6 * place :][:6]
            switch.pool = switch.pool._replace(
                rows=rows, seen=seen, values=views_of(values), failed=failed, window=window, signs=signs
            )

    def _plant(self, tree, parent):
        name = ROOT + len(self.all)
        below = str(tree).count(",") + 1
        self.all.append(
            Switch(EXACT, slots=SLOTS, payload_nbytes=72, most_workers=len(tree), most_jobs=1, parent=parent,
                   ranks_below=None if parent is None else below)
        )  # fmt: skip
        if parent is not None:
            self.above[name] = parent
        for child in tree:
            if isinstance(child, int):
                self.above[child] = name
            else:
                self._plant(child, name)

    def save(self):
        return self.memory.tobytes()

    def restore(self, saved):
        self.memory[:] = np.frombuffer(saved, np.uint8)

    def receive(self, target, source, packet):
        """Answers as target, source, packet."""
        answers = self.all[target - ROOT].receive(packet, source, 0.0)
        return [(answer.name, target, np.concatenate([answer.header, answer.payload])) for answer in answers]


class VersionBitSwitch:
    """SwitchML's algorithm 3: packets tell their use of a slot by one bit, here the chunk's."""

    def __init__(self, tree):
        self.workers = len(tree)
        self.above = dict.fromkeys(tree, ROOT)
        self.numbers = dict(zip(tree, tree, strict=True))
        self.restore(((0,) * (2 * SLOTS), (0,) * (2 * SLOTS), (0,) * (2 * SLOTS)))

    def save(self):
        return tuple(self.seen), tuple(self.count), tuple(self.sums)

    def restore(self, saved):
        self.seen, self.count, self.sums = map(list, saved)

    def receive(self, target, name, packet):
        chunk = int(packet[24:28].view(np.uint32)[0])
        row = 2 * (chunk % SLOTS) + chunk // SLOTS % 2
        value, bit = int(packet[packets.HEADER_NBYTES :].view(np.uint64)[0]), 1 << name
        if self.seen[row] & bit:
            return [] if self.count[row] else [(name, ROOT, self._result(packet, row))]
        self.seen[row] |= bit
        self.seen[row ^ 1] &= ~bit
        self.sums[row] = value if self.count[row] == 0 else self.sums[row] + value
        self.count[row] = (self.count[row] + 1) % self.workers
        return [] if self.count[row] else [(to, ROOT, self._result(packet, row)) for to in range(self.workers)]

    def _result(self, packet, row):
        result = packet.copy()
        result[4] = packets.RESULT
        result[packets.HEADER_NBYTES :].view(np.uint64)[0] = self.sums[row]
        return result


class Workers:
    """All workers at all operations; which has a memory of its own each."""

    def __init__(self, numbers, chunks, lanes):
        workers = len(numbers)
        self.number, self.chunks = workers, chunks
        width = packets.WIDTHS[lanes]
        self.dtype = np.dtype(np.float32) if lanes == packets.FLOAT32 else np.dtype(f"u{width}")
        self.all = []
        for rank in range(workers):
            operations = []
            for operation, count in enumerate(chunks):
                send = np.array([element(rank, workers, operation, c, chunks) for c in range(count)], self.dtype)
                worker = make_worker(EXACT, JOB, numbers[rank], SLOTS, workers)
                recv = np.zeros(send.nbytes, np.uint8)
                worker = begin(worker, send.view(np.uint8), recv, lanes, width, operation + 1, count)
                _KERNELS.start(worker, 0.0)
                operations.append(worker)
            self.all.append(operations)
        self.at = [0] * workers

    def save(self):
        return tuple(
            (at, int(self.all[rank][at].facts[progress.MISSING]), *self.all[rank][at].chunks.tolist())
            if at < len(self.chunks)
            else (at,)
            for rank, at in enumerate(self.at)
        )

    def restore(self, saved):
        for rank, (at, *rest) in enumerate(saved):
            self.at[rank] = at
            if rest:
                worker = self.all[rank][at]
                worker.facts[progress.MISSING], worker.chunks[:] = rest[0], rest[1:]
                worker.tries[:] = 1

    def send(self, rank):
        """What this worker may send now."""
        if self.at[rank] == len(self.chunks):
            return []
        worker = self.all[rank][self.at[rank]]
        sent = []
        for slot in np.flatnonzero(worker.chunks >= 0):
            packet = aligned(_LENGTH)
            low, nbytes = _KERNELS.prepare(worker, slot, 0.0, packet[: packets.HEADER_NBYTES].view(np.uint64))
            packet[packets.HEADER_NBYTES :][:nbytes] = worker.send[low : low + nbytes]
            sent.append(packet[: packets.HEADER_NBYTES + nbytes])
        return sent

    def receive(self, rank, packet):
        """Take in a packet; whether that changed anything."""
        operation = self.at[rank]
        if operation == len(self.chunks):
            return False
        if packet[4] == packets.FAILURE:
            if Control.unpack(packet).epoch != operation + 1:
                return False
            self._next(rank)
            return True
        worker = self.all[rank][operation]
        memory = aligned(packet.size)
        memory[: packet.size] = packet
        if not _KERNELS.accept(worker, memory, memory.view(np.uint64), packet.size, 0.0):
            return False
        chunk = int(packet[24:28].view(np.uint32)[0])
        if worker.recv.view(self.dtype)[chunk] != expected(self.number, operation, chunk, self.chunks):
            raise WrongSumError(f"worker {rank}, operation {operation}, chunk {chunk}")
        if worker.facts[progress.MISSING] == 0:
            self._next(rank)
        return True

    def give_up(self, rank):
        """End an operation without its sum, and say so."""
        epoch = self.at[rank] + 1
        self._next(rank)
        return Control(packets.GIVE_UP, JOB, 0, epoch).pack()

    def _next(self, rank):
        self.at[rank] += 1
        if self.at[rank] < len(self.chunks):
            _KERNELS.start(self.all[rank][self.at[rank]], 0.0)


class Search:
    """All states of workers behind switches, at operations of so many chunks; any may give up the first `fail` ones."""

    def __init__(self, switches, tree, chunks, lanes=packets.ADD64, fail=0):
        self.switches = switches(tree)
        self.workers = Workers(self.switches.numbers, chunks, lanes)
        self.ranks = range(len(self.switches.numbers))
        self.fail = fail
        self.packets, self.places = [], {}
        self.done = tuple((len(chunks),) for _ in self.ranks)

    def _bits(self, sent):
        """Packets under way, as bits of an integer."""
        bits = 0
        for target, source, packet in sent:
            key = target, source, packet.tobytes()
            if key not in self.places:
                self.places[key] = len(self.packets)
                self.packets.append((target, source, packet))
            bits |= 1 << self.places[key]
        return bits

    def _sent_by(self, rank):
        return [(self.switches.above[rank], rank, packet) for packet in self.workers.send(rank)]

    def _deliver(self, target, source, packet):
        """Have a packet arrive; what is sent then."""
        if target >= ROOT:
            return self.switches.receive(target, source, packet)
        return self._sent_by(target) if self.workers.receive(target, packet) else []

    def _give_up(self, rank):
        above = self.switches.above[rank]
        return [(above, rank, self.workers.give_up(rank)), *self._sent_by(rank)]

    def _save(self):
        return self.switches.save(), self.workers.save()

    def _restore(self, switches, workers):
        self.switches.restore(switches)
        self.workers.restore(workers)

    def states(self):
        """Explore all; the states of switches and workers, whatever is under way."""
        first = (*self._save(), self._bits(packet for rank in self.ranks for packet in self._sent_by(rank)))
        known, todo = {first}, collections.deque([first])
        while todo:
            switches, workers, under_way = todo.popleft()
            steps = [
                functools.partial(self._deliver, *self.packets[place])
                for place in range(under_way.bit_length())
                if under_way >> place & 1
            ]
            steps += [functools.partial(self._give_up, rank) for rank in self.ranks if workers[rank][0] < self.fail]
            for step in steps:
                self._restore(switches, workers)
                sent = step()
                state = (*self._save(), under_way | self._bits(sent))
                if state not in known:
                    known.add(state)
                    todo.append(state)
        return {state[:2] for state in known}

    def can_end(self, state, live):
        """Whether all end if all that is under way is lost, but what is sent from then on is not."""
        path = []
        while state not in live and state[1] != self.done:
            path.append(state)
            self._restore(*state)
            todo = [packet for rank in self.ranks for packet in self._sent_by(rank)]
            while todo:
                target, source, packet = todo.pop()
                if target >= ROOT:
                    todo += self.switches.receive(target, source, packet)
                else:
                    self.workers.receive(target, packet)
            if self._save() == state:  # these may give up
                stuck = [rank for rank in self.ranks if state[1][rank][0] < self.fail]
                if not stuck:
                    return False
                for rank in stuck:
                    self._give_up(rank)
            state = self._save()
        live.update(path)
        return True


@pytest.mark.parametrize(
    ("tree", "chunks", "fail", "lanes"),
    [
        ([0, 1], [6], 0, packets.ADD64),
        ([0, 1], [3, 1, 2, 1], 0, packets.ADD64),
        ([0, 1], [3, 1, 3], 1, packets.ADD64),
        ([0, 1, 2], [5], 0, packets.ADD64),
        ([0, 1, 2], [3, 1], 0, packets.FLOAT32),
        ([0, 1, 2], [1, 1], 1, packets.ADD64),
        ([[0, 1], 2], [3], 0, packets.ADD64),
        ([[0, 1], 2], [3], 0, packets.FLOAT32),
    ],
)
def test_no_order_gives_a_wrong_sum_or_no_end(tree, chunks, fail, lanes):
    search = Search(Switches, tree, chunks, lanes, fail)
    states = search.states()
    assert any(workers == search.done for _, workers in states)
    live = set()
    assert all(search.can_end(state, live) for state in states)


def test_one_version_bit_is_not_enough():
    with pytest.raises(WrongSumError):
        Search(VersionBitSwitch, [0, 1], [5]).states()


def test_one_version_bit_is_enough_while_each_slot_is_used_once():
    search = Search(VersionBitSwitch, [0, 1], [2])
    live = set()
    assert all(search.can_end(state, live) for state in search.states())
