"""An aggregating switch: registers, jobs, and what it answers. It neither waits nor moves bytes.

`SwitchModel` runs it in virtual time, `SwitchProcess` over UDP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets, registers
from collcomp.switch.control import Control, brief
from collcomp.switch.pool import aligned, clear_rows, make_pool, views_of
from collcomp.switch.programs import Program

__all__ = ["Outgoing", "Switch"]

# A job that has been silent for so long makes room where others want to join: one in use, and one that ranks have left.
_SILENT_S, _LEFT_S = 60.0, 2.0
# Jobs that are gone, of which it is remembered why; jobs that not all have joined yet.
_REMEMBERED = 64
_MOST_WAITING = 64
# How long a switch below may take to say whom it waits for.
_ANSWER_S = 0.5
# Ranks of a job: their numbers have 16 bits in packets.
_MOST_RANKS = 1 << 16
# Runs of ranks that a JOIN has room for.
_MOST_RUNS = 64
# Ranks that an answer names.
_MOST_NAMED = 100
# An epoch after all others.
_NEVER = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A packet to be sent: a header and what lies behind it.

    Attributes
    ----------
    name : int
        Address to send to.
    header, payload : ndarray of uint8
    """

    name: int
    header: np.ndarray
    payload: np.ndarray


@dataclass(slots=True)
class _Member:
    """A worker, or a switch below with several."""

    ranks: list[int]
    name: int
    #: What it was last asked about: epoch, chunk, slot; when first; and its answer: which of its ranks it waits for.
    asked: tuple[int, int, int] = (0, 0, 0)
    asked_at: float = 0.0
    waits_for: list[int] | None = None


@dataclass(slots=True, eq=False)
class _Job:
    """What Python knows of a job, beside the pool."""

    number: int
    size: int
    slots: int
    payload_nbytes: int
    floats: int
    #: Who has joined, by their first rank; in the order of `order` once all have.
    members: dict[int, _Member] = field(default_factory=dict)
    order: list[_Member] = field(default_factory=list)
    #: Its place in the pool.
    index: int | None = None
    #: The last operation that failed, and why.
    failed: int = 0
    failure: str = ""
    #: Address of the last who asked for whom it waits.
    asker: int = 0
    #: Who has left, by their addresses, and what the first one said.
    left: set[int] = field(default_factory=set)
    departure: str = ""


class Switch:
    """A switch, or one of a tree of them.

    Parameters
    ----------
    program : Program
    slots : int
        In the pool.
    payload_nbytes : int
        That a packet has room for; equal in all switches of a tree.
    most_workers, most_jobs : int
    parent : int, optional
        Address of the switch above.
    ranks_below : int, optional
        How many ranks of a job send to a switch that has one above; all of them where there is none.
    """

    def __init__(
        self,
        program: Program,
        *,
        slots: int,
        payload_nbytes: int,
        most_workers: int = 64,
        most_jobs: int = 16,
        parent: int | None = None,
        ranks_below: int | None = None,
    ) -> None:
        if program.aggregators and parent is not None:
            raise ValueError(f"parent must be None: program {program.name!r} sums in one switch")
        self.program = program
        self.parent = parent
        self.ranks_below = ranks_below
        self.slots = slots
        self.payload_nbytes = payload_nbytes - payload_nbytes % 8
        self.pool = make_pool(
            slots, self.payload_nbytes, most_workers, most_jobs,
            floats=program.most_floats(self.payload_nbytes), aggregators=program.aggregators,
        )  # fmt: skip
        self._jobs: dict[int, _Job] = {}
        self._gone: dict[int, str] = {}
        self._kernels = cpu.load("switch")

    def receive(self, packet: np.ndarray, name: int, now: float) -> list[Outgoing]:
        """Take in a packet (uint8, in memory from `aligned`) that came from address `name`; what is to be sent."""
        memory = aligned(max(packet.size, packets.HEADER_NBYTES))
        memory[: packet.size] = packet
        views = views_of(memory.reshape(1, -1))
        action, row, index, worker = self._kernels.receive(self.pool, views, 0, packet.size, np.uint64(name), now)
        return self.act(action, row, index, worker, packet, name, now)

    def act(
        self, action: int, row: int, index: int, worker: int, packet: np.ndarray, name: int, now: float
    ) -> list[Outgoing]:
        """What is to be sent after the program's `action`."""
        kernels = self._kernels
        if action == kernels.TO_SENDER:
            return [self._result(self._at(index), row, worker)]
        if action == kernels.TO_ALL:
            job = self._at(index)
            first = self._result(job, row, 0)
            return [first, *(self._readdressed(first, job, number) for number in range(1, len(job.order)))]
        if action == kernels.TO_PARENT:
            return self._partial(self._at(index), row)
        if action == kernels.CONTROL:
            control = Control.unpack(packet)
            if control is None:
                self.pool.counters[registers.MALFORMED] += 1
                return []
            return self._control(control, name, now)
        if action == kernels.WITHOUT_JOB:
            number = int(packet[8:16].view(np.uint64)[0])
            text = self._gone.get(number, "the switch does not know this job: it was started anew, or needed the room")
            return [self._say(name, Control(packets.FAILURE, number, body={"text": text}))]
        if action == kernels.GONE:
            return [self._failure(self._at(index), name, _epoch(packet))]
        if action == kernels.DIFFERS:
            job = self._at(index)
            ranks = _listed(job.order[worker].ranks)
            epoch = _epoch(packet)
            text = f"the call of rank {ranks} differs from those before it in count, dtype, op or codec"
            return self._above(Control(packets.GIVE_UP, job.number, 0, epoch), text) + self._fail(job, epoch, text)
        return []

    def see_queue(self, nbytes: int) -> None:
        """Say how long the queue of packets to or from this switch is now; programs that mark sums for it do so."""
        mark = self.program.mark_nbytes
        self.pool.aggregators.congested[0] = mark is not None and nbytes >= mark

    def jobs(self) -> dict[int, list[int]]:
        """Ranks that have joined, by job."""
        return {number: _ranks(job.members.values()) for number, job in self._jobs.items()}

    def free_slots(self) -> int:
        """Slots that no job has."""
        return self.slots - sum(job.slots for job in self._jobs.values() if job.index is not None)

    # ------------------------------------------------------------------ packets

    def _result(self, job: _Job, row: int, worker: int) -> Outgoing:
        header = aligned(packets.HEADER_NBYTES)
        nbytes = self._kernels.write_result(self.pool, row, np.uint64(job.number), worker, header.view(np.uint64))
        return Outgoing(job.order[worker].name, header, self.pool.values.u8[row, :nbytes].copy())

    def _readdressed(self, result: Outgoing, job: _Job, worker: int) -> Outgoing:
        header = result.header.copy()
        header[6], header[7] = worker & 0xFF, worker >> 8
        return Outgoing(job.order[worker].name, header, result.payload)

    def _partial(self, job: _Job, row: int) -> list[Outgoing]:
        """What is summed here, for the switch above: in one packet, or, where it is wide, in parts."""
        assert self.parent is not None
        worker = int(self.pool.facts[job.index, registers.PARENT])
        sent = []
        for part in range(packets.PARTS):
            header, payload = aligned(packets.HEADER_NBYTES), aligned(self.payload_nbytes)
            nbytes = self._kernels.write_partial(
                self.pool, row, np.uint64(job.number), worker, part, header.view(np.uint64),
                views_of(payload.reshape(1, -1)), 0,
            )  # fmt: skip
            if nbytes >= 0:
                sent.append(Outgoing(self.parent, header, payload[:nbytes]))
        return sent

    def _say(self, name: int, control: Control) -> Outgoing:
        return Outgoing(name, control.pack(), np.empty(0, np.uint8))

    def _at(self, index: int) -> _Job:
        return self._jobs[int(self.pool.jobs[index])]

    # ------------------------------------------------------------------ control

    def _control(self, control: Control, name: int, now: float) -> list[Outgoing]:
        if control.kind == packets.JOIN:
            return self._join(control, name, now)
        job = self._jobs.get(control.job)
        if job is None:
            return []
        if name == self.parent:
            return self._from_above(job, control, now)
        if name not in (member.name for member in job.members.values()):
            self.pool.counters[registers.STRANGERS] += 1
            return []
        if control.kind == packets.GIVE_UP and job.index is not None:
            if not max(job.failed, 1) <= control.epoch < _NEVER:
                return []
            if control.epoch == job.failed:  # known; what was said above may have been lost
                return [*self._above(control, job.failure), self._failure(job, name, control.epoch)]
            return self._above(control, _text(control)) + self._fail(job, control.epoch, _text(control))
        if control.kind == packets.STATUS:
            return self._status(job, control, name, now)
        if control.kind == packets.MISSING:
            return self._answered(job, control, name, now)
        if control.kind == packets.LEAVE:
            return self._leave(job, name, _text(control))
        return []

    def _above(self, control: Control, text: str) -> list[Outgoing]:
        """The same said to the switch above, if there is one."""
        if self.parent is None:
            return []
        return [self._say(self.parent, replace(control, body={"text": brief(text)}))]

    def _leave(self, job: _Job, name: int, text: str) -> list[Outgoing]:
        """A worker sends no more; the others may still miss sums that it has."""
        first = not job.left
        job.left.add(name)
        job.departure = job.departure or text or "a rank has left"
        if job.index is None or len(job.left) == len(job.members):
            self._remove(job, job.departure)
        else:
            self.pool.failed[job.index] = _NEVER
        return self._above(Control(packets.LEAVE, job.number), job.departure) if first else []

    def _join(self, control: Control, name: int, now: float) -> list[Outgoing]:
        asked = _Wishes.of(control)
        if asked is None or control.job == 0:
            self.pool.counters[registers.MALFORMED] += 1
            return []
        if control.job in self._gone:
            return [self._refusal(control.job, name, self._gone[control.job])]
        most = self.program.most_workers
        if most is not None and asked.size > most:
            text = f"program {self.program.name!r} takes {most} workers, not {asked.size}"
            return [self._refusal(control.job, name, text)]
        job = self._jobs.get(control.job)
        if job is None:
            self._forget_waiting()
            job = _Job(control.job, asked.size, self.slots, self.payload_nbytes, self._floats())
            self._jobs[control.job] = job
        first = min(asked.ranks)
        known = job.members.get(first)
        if known is not None and known.name == name:
            if job.index is not None:
                return [self._welcome(job, job.order.index(known))]
            return self._join_above(job, now) if self._complete(job) else [self._absent(job, name)]
        if job.index is not None or known is not None or asked.size != job.size or not self._fits(job, asked):
            text = (
                f"rank {first} of {asked.size} does not fit a job of {job.size} ranks with {len(job.members)} joined; "
                f"{self.pool.seen.shape[1]} workers can send to this switch"
            )
            return [self._refusal(control.job, name, text)]
        job.members[first] = _Member(asked.ranks, name)
        job.slots = min(job.slots, asked.slots)
        job.payload_nbytes = min(job.payload_nbytes, asked.payload_nbytes)
        job.floats = min(job.floats, asked.floats)
        if not self._complete(job):
            return [self._absent(job, name)]
        return self._join_above(job, now) if self.parent is not None else self._start(job, now, {})

    def _absent(self, job: _Job, name: int) -> Outgoing:
        """Say who has not joined yet, as far as a switch knows that has not all ranks below it."""
        joined = set(_ranks(job.members.values()))
        known = job.size if self.ranks_below is None else 0
        absent = islice((rank for rank in range(known) if rank not in joined), _MOST_NAMED)
        return self._say(name, Control(packets.MISSING, job.number, body={"ranks": list(absent)}))

    def _forget_waiting(self) -> None:
        """Jobs that nobody completes are not kept for ever."""
        waiting = [job for job in self._jobs.values() if job.index is None]
        if len(waiting) >= _MOST_WAITING:
            self._remove(waiting[0], "not all ranks had joined when many other jobs wanted to")

    def _floats(self) -> int:
        """Most floats of a packet: where there is a switch above, unrounded sums have to fit one, too."""
        if self.parent is None:
            return self.payload_nbytes // 2
        wide = packets.PARTS * (self.payload_nbytes // packets.WIDE_NBYTES)
        return min(self.payload_nbytes // packets.NARROW_NBYTES, wide)

    def _complete(self, job: _Job) -> bool:
        return sum(len(member.ranks) for member in job.members.values()) == (self.ranks_below or job.size)

    def _fits(self, job: _Job, asked: _Wishes) -> bool:
        taken = set(_ranks(job.members.values()))
        room = len(taken) + len(asked.ranks) <= (self.ranks_below or job.size)
        return room and not taken & set(asked.ranks) and len(job.members) < self.pool.seen.shape[1]

    def _join_above(self, job: _Job, now: float) -> list[Outgoing]:
        if self.parent is None:
            return []
        ranks = _ranks(job.members.values())
        room = self._room(1, now)
        if room is None:
            return self._refuse(job, self._no_room())
        _, _, slots = room
        if len(runs := _runs(ranks)) > _MOST_RUNS:
            return self._refuse(job, f"the ranks of a switch are in {len(runs)} pieces, {_MOST_RUNS} can be named")
        slots = min(job.slots, slots)
        return [self._say(self.parent, Control.join(job.number, job.size, runs, slots, job.payload_nbytes, job.floats))]

    def _start(self, job: _Job, now: float, above: dict[str, Any]) -> list[Outgoing]:
        """Give a job whose members have all joined its registers, and tell them."""
        job.order = [job.members[first] for first in sorted(job.members)]
        # What the switch above has granted has to be there in whole.
        room = self._room(1 if self.parent is None else job.slots, now)
        if room is None:
            text = self._no_room()
            return self._above(Control(packets.LEAVE, job.number), text) + self._refuse(job, text)
        index, first, slots = room
        job.index, job.slots = index, min(job.slots, slots)
        job.payload_nbytes = min(job.payload_nbytes, above.get("payload", job.payload_nbytes))
        job.floats = min(job.floats, above.get("floats", job.floats))
        facts = self.pool.facts[index]
        facts[registers.CHILDREN] = len(job.order)
        facts[registers.FIRST], facts[registers.SLOTS] = first, job.slots
        facts[registers.PAYLOAD], facts[registers.FLOATS] = job.payload_nbytes, job.floats
        # Sums from below have to fit beside each other; what workers send, beside that of all workers of the job.
        addends = len(job.order) if any(len(member.ranks) > 1 for member in job.order) else job.size
        facts[registers.HEADROOM] = (addends - 1).bit_length()
        facts[registers.PARENT] = above.get("worker", -1)
        self.pool.parents[index, 0] = self.parent or 0
        self.pool.names[index, : len(job.order), 0] = [member.name for member in job.order]
        self.pool.failed[index], self.pool.heard[index] = 0, now
        clear_rows(self.pool, first, job.slots)
        self.pool.jobs[index] = job.number
        return [self._welcome(job, worker) for worker in range(len(job.order))]

    def _no_room(self) -> str:
        jobs = f"{np.count_nonzero(self.pool.jobs)} jobs of {self.pool.jobs.size}"
        return f"no room for another job: the switch has {jobs}, and {self.free_slots()} free slots of {self.slots}"

    def _refuse(self, job: _Job, text: str) -> list[Outgoing]:
        self._remove(job, text)
        return [self._refusal(job.number, member.name, text) for member in job.members.values()]

    def _refusal(self, number: int, name: int, text: str) -> Outgoing:
        return self._say(name, Control(packets.REFUSAL, number, body={"text": text}))

    def _room(self, fewest: int, now: float) -> tuple[int, int, int] | None:
        """Index of a job, first slot and slots of the largest gap; jobs that have long been silent make room."""
        while True:
            indices = np.flatnonzero(self.pool.jobs == 0)
            taken = sorted(
                (int(facts[registers.FIRST]), int(facts[registers.SLOTS]))
                for facts in self.pool.facts[self.pool.jobs != 0]
            )
            ends = [0, *(first + slots for first, slots in taken)]
            starts = [*(first for first, _ in taken), self.slots]
            gap, first = max((stop - start, start) for start, stop in zip(ends, starts, strict=True))
            if gap >= fewest and indices.size:
                return int(indices[0]), first, gap
            spare = {job: self._spare_after(job) for job in self._jobs.values() if job.index is not None}
            longest = min(spare, key=spare.__getitem__, default=None)
            if longest is None or now <= spare[longest]:
                return None
            self._remove(longest, "the switch gave the slots of this silent job to another one")

    def _spare_after(self, job: _Job) -> float:
        """When a job's slots may go to another one."""
        return float(self.pool.heard[job.index]) + (_LEFT_S if job.left else _SILENT_S)

    def _welcome(self, job: _Job, worker: int) -> Outgoing:
        body = {
            "program": self.program.name,
            "slots": job.slots,
            "payload": job.payload_nbytes,
            "floats": job.floats,
            "worker": worker,
        }
        return self._say(job.order[worker].name, Control(packets.WELCOME, job.number, worker, body=body))

    def _from_above(self, job: _Job, control: Control, now: float) -> list[Outgoing]:
        if control.kind == packets.WELCOME and job.index is None and control.body is not None:
            terms: list[Any] = [control.body.get(name) for name in ("slots", "payload", "floats", "worker")]
            if not all(map(_counts, terms)) or not all(terms[:3]):
                self.pool.counters[registers.MALFORMED] += 1
                return []
            job.slots = min(job.slots, control.body["slots"])
            return self._start(job, now, control.body)
        if control.kind == packets.FAILURE and job.index is not None:
            if max(job.failed, 1) <= control.epoch < _NEVER:
                return self._fail(job, control.epoch, _text(control))
            if control.epoch == 0:  # there will be no more sums; whoever sends is told
                job.departure = job.departure or _text(control)
                self.pool.failed[job.index] = _NEVER
        if control.kind == packets.REFUSAL and job.index is None:
            return self._refuse(job, _text(control))
        if control.kind == packets.MISSING:
            ranks = (control.body or {}).get("ranks")
            named = [rank for rank in ranks if _counts(rank)][:_MOST_NAMED] if isinstance(ranks, list) else []
            return [self._say(m.name, replace(control, body={"ranks": named})) for m in job.members.values()]
        if control.kind == packets.STATUS:
            return self._status(job, control, self.parent or 0, now)
        return []

    def _status(self, job: _Job, control: Control, name: int, now: float, ask: bool = True) -> list[Outgoing]:
        """Say whose part of a chunk is missing; have a switch asked that knows more."""
        if job.index is None or control.slot >= self.pool.facts[job.index, registers.SLOTS]:
            return []
        about = control.epoch, control.chunk, control.slot
        row = 2 * (self.pool.facts[job.index, registers.FIRST] + control.slot)
        used = {
            (int(use[registers.EPOCH]), int(use[registers.CHUNK])): i for i, use in enumerate(self.pool.rows[row:][:2])
        }
        missing: list[_Member] = []
        if about[:2] in used:
            row += used[about[:2]]
            state = self.pool.rows[row, registers.STATE]
            if state == registers.WAITING and name != self.parent:
                return self._above(control, "")
            if state == registers.COLLECTING:
                whole = (1 << packets.PARTS) - 1
                seen = self.pool.seen[row, : len(job.order)]
                missing = [member for member, bits in zip(job.order, seen, strict=True) if bits != whole]
        elif about[:2] > max(used):
            missing = job.order
        ranks: list[int] = []
        to_ask = []
        for member in missing:
            if member.name == name:
                continue  # it is there, and sends again what has been lost
            if len(member.ranks) == 1:
                ranks += member.ranks
                continue
            if member.asked != about:
                member.asked, member.asked_at, member.waits_for = about, now, None
            if member.waits_for is not None:
                ranks += member.waits_for
            elif now - member.asked_at > _ANSWER_S:
                ranks += member.ranks
            else:
                to_ask.append(member)
        job.asker = name
        if to_ask:
            question = Control(packets.STATUS, job.number, 0, *about)
            return [self._say(member.name, question) for member in to_ask] if ask else []
        return [
            self._say(
                name, Control(packets.MISSING, job.number, 0, *about, body={"ranks": sorted(ranks)[:_MOST_NAMED]})
            )
        ]

    def _answered(self, job: _Job, control: Control, name: int, now: float) -> list[Outgoing]:
        """A switch below says for which of its ranks it waits."""
        member = next(member for member in job.members.values() if member.name == name)
        ranks = (control.body or {}).get("ranks")
        if member.asked != (control.epoch, control.chunk, control.slot) or not isinstance(ranks, list):
            return []
        member.waits_for = [rank for rank in member.ranks if rank in ranks]
        return self._status(job, control, job.asker, now, ask=False)

    def _fail(self, job: _Job, epoch: int, text: str) -> list[Outgoing]:
        job.failed, job.failure = epoch, brief(text)
        self.pool.failed[job.index] = max(int(self.pool.failed[job.index]), epoch)
        return [self._failure(job, member.name, epoch) for member in job.order]

    def _failure(self, job: _Job, name: int, epoch: int) -> Outgoing:
        """Say that operation `epoch` has failed, or, where all later ones will, that the job is over."""
        if epoch <= job.failed:
            return self._say(name, Control(packets.FAILURE, job.number, 0, epoch, body={"text": job.failure}))
        return self._say(name, Control(packets.FAILURE, job.number, body={"text": brief(job.departure)}))

    def _remove(self, job: _Job, why: str) -> None:
        """Give a job's slots back."""
        del self._jobs[job.number]
        self._gone[job.number] = brief(why)
        while len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        if job.index is not None:
            self.pool.jobs[job.index] = 0
            facts = self.pool.facts[job.index]
            clear_rows(self.pool, int(facts[registers.FIRST]), int(facts[registers.SLOTS]))


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What a JOIN says, checked."""

    size: int
    ranks: list[int]
    slots: int
    payload_nbytes: int
    floats: int

    @classmethod
    def of(cls, control: Control) -> _Wishes | None:
        body = control.body or {}
        ranks = _unrun(body.get("ranks"))
        numbers: list[Any] = [body.get(name) for name in ("size", "slots", "payload", "floats")]
        if not ranks or not all(_counts(n) and n > 0 for n in numbers):
            return None
        size, slots, payload, floats = numbers
        if size > _MOST_RANKS or max(ranks) >= size or len(set(ranks)) != len(ranks):
            return None
        return cls(size, sorted(ranks), slots, payload - payload % 8, floats)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _runs(ranks: Sequence[int]) -> list[list[int]]:
    """Ascending ranks as pairs (first, last), so that a JOIN has room for many."""
    known = set(ranks)
    starts = [rank for rank in ranks if rank - 1 not in known]
    stops = [rank for rank in ranks if rank + 1 not in known]
    return [list(run) for run in zip(starts, stops, strict=True)]


def _unrun(runs: Any) -> list[int]:
    """The ranks in a JOIN, numbers or pairs (first, last); none where it is malformed."""
    ranks: list[int] = []
    for run in runs if isinstance(runs, list) else []:
        pair = run if isinstance(run, list) else [run, run]
        if len(pair) != 2 or not all(map(_counts, pair)) or pair[1] - pair[0] + len(ranks) >= _MOST_RANKS:
            return []
        ranks += range(pair[0], pair[1] + 1)
    return ranks


def _epoch(packet: np.ndarray) -> int:
    return int(packet[16:24].view(np.uint64)[0])


def _text(control: Control) -> str:
    return str((control.body or {}).get("text", ""))


def _ranks(members: Iterable[_Member]) -> list[int]:
    return sorted(rank for member in members for rank in member.ranks)


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
