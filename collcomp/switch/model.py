"""Switches and their workers in one process and in virtual time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collcomp.errors import CollcompError, DeadlineError, FrameError, TransportError
from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets, progress
from collcomp.kernels.cpu.registers import COUNTERS
from collcomp.switch.control import Control
from collcomp.switch.network import Link, Network, Node
from collcomp.switch.pool import aligned
from collcomp.switch.programs import EXACT, Program, lanes_for
from collcomp.switch.switch import Outgoing, Switch
from collcomp.switch.worker import begin, make_worker

__all__ = ["Link", "Outcome", "SwitchModel"]

# Seconds until a question that nobody answered is asked again, and after which workers no longer ask who is late.
_AGAIN_S, _ASKING_S = 0.1, 1.0
# Of packets of programs that leave it open.
_PAYLOAD_NBYTES = 1024
_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an operation.

    Attributes
    ----------
    results : list of ndarray, CollcompError or None
        By worker: the sum, or the error that is raised there; None for those that have died.
    seconds : float
        From the call until the last worker has its sum, or has failed.
    sent, resent : int
        Packets with elements that workers sent, and how many of them again.
    packets, lost, nbytes : int
        On all links meanwhile, headers of all layers included.
    counters : list of dict
        What each switch has counted since it was made, by the names in `collcomp.kernels.cpu.registers.COUNTERS`; the
        root first.
    """

    results: list[np.ndarray | CollcompError | None]
    seconds: float
    sent: int
    resent: int
    packets: int
    lost: int
    nbytes: int
    counters: list[dict[str, int]]


class SwitchModel:
    """Switches and the workers that send to them, in virtual time; the same for the same `seed`.

    Switches and workers run the code of the real ones. What is modelled is the links, and the time that packets take.

    Parameters
    ----------
    size : int or sequence of int
        Number of workers; or of each of several jobs, whose workers are numbered on: they share the switch.
    program : Program
    tree : sequence, optional
        Workers, and sequences of them behind switches of their own: ``[[0, 1], [2, [3, 4]]]`` has four switches. One
        switch if not given.
    up, down, trunk : Link
        From a worker, to a worker, and either way between switches.
    switch_s, worker_s : float
        Seconds that a switch or a worker needs for each packet that it receives or sends, one after the other.
    slots : int, optional
        Of the pool of each switch; as many as the program has if not given.
    window : int
        Slots that each job asks for.
    payload_nbytes : int, optional
        Of each packet; as many as the program says, or else 1024, if not given.
    deadline : float
        Seconds without a sum after which a worker gives up, once it knows for whom the switch waits.
    seed : int

    Attributes
    ----------
    network : Network
    switches : list of Switch
        The root first.

    Raises
    ------
    ValueError
        If `tree` does not have every worker of one job once.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        program: Program = EXACT,
        *,
        tree: Sequence[Any] | None = None,
        up: Link = Link(),  # noqa: B008 (frozen)
        down: Link = Link(),  # noqa: B008
        trunk: Link = Link(),  # noqa: B008
        switch_s: float = 0.0,
        worker_s: float = 0.0,
        slots: int | None = None,
        window: int = 64,
        payload_nbytes: int | None = None,
        deadline: float = 30.0,
        seed: int = 0,
    ) -> None:
        sizes = [size] if isinstance(size, int) else list(size)
        if tree is not None and (len(sizes) > 1 or sorted(_ranks_of(tree)) != list(range(sizes[0]))):
            raise ValueError(f"tree must have each worker of one job once, not {tree!r} for {size} workers")
        self.network = Network(seed)
        self.switches: list[Switch] = []
        self._links = up, down, trunk
        self._switch_s = switch_s
        nbytes = payload_nbytes or program.payload_nbytes or _PAYLOAD_NBYTES
        self._pools: dict[str, Any] = {
            "program": program,
            "slots": program.slots if slots is None else slots,
            "payload_nbytes": nbytes,
            "most_jobs": len(sizes),
        }
        self._waiting: set[_Worker] = set()
        self._workers = [
            _Worker(self.network, worker_s, _Job(program, job, count, window, nbytes, deadline), rank, self._waiting)
            for job, count in enumerate(sizes, 1)
            for rank in range(count)
        ]
        self._plant(range(sum(sizes)) if tree is None else tree, None)
        self._joined = False

    def _plant(self, tree: Sequence[Any], parent: _SwitchNode | None) -> _SwitchNode:
        """Build a switch and all that is below it."""
        up, down, trunk = self._links
        switch = Switch(
            most_workers=len(tree),
            parent=None if parent is None else parent.name,
            ranks_below=None if parent is None else len(_ranks_of(tree)),
            **self._pools,
        )
        self.switches.append(switch)
        node = _SwitchNode(self.network, self._switch_s, switch)
        for below in tree:
            if isinstance(below, int):
                child = self._workers[below]
                child.above = node.name
                child.connect(node, up)
                node.connect(child, down)
            else:
                subtree = self._plant(below, node)
                subtree.connect(node, trunk)
                node.connect(subtree, trunk)
        return node

    def allreduce(
        self,
        operands: Sequence[np.ndarray],
        op: str = "sum",
        *,
        late: Mapping[int, float] | None = None,
        deaths: Mapping[int, float] | None = None,
    ) -> Outcome:
        """Combine one operand of each worker of a job, for each job.

        Workers join before the first call, which does not count into its figures.

        Parameters
        ----------
        operands : sequence of ndarray
            By worker. float32, float16 or bfloat16; or integers, which are added modulo ``2**width``.
        op : str
            "sum"; for unsigned integers "max", for uint8 "or".
        late, deaths : mapping of int to float, optional
            Workers that start so many seconds after the call, or do nothing from then on. The dead stay dead.

        Returns
        -------
        Outcome

        Raises
        ------
        ValueError
            If there is not one operand per worker.
        TypeError
            If switches do not combine such elements so.
        """
        if len(operands) != len(self._workers):
            raise ValueError(f"operands: {len(operands)}, not one for each of {len(self._workers)} workers")
        lanes = [lanes_for(worker.program, x.dtype, op) for worker, x in zip(self._workers, operands, strict=True)]
        network = self.network
        if not self._joined:
            for worker in self._workers:
                worker.join()
            self._run()
            self._joined = True
        now = max(network.now, *(worker.ended for worker in self._workers))
        packets_, lost, nbytes = network.packets, network.lost, network.nbytes
        for rank, seconds in (deaths or {}).items():
            network.at(now + seconds, self._workers[rank].die)
        for rank, worker in enumerate(self._workers):
            worker.call(operands[rank], lanes[rank], now + (late or {}).get(rank, 0.0))
        self._run()
        return Outcome(
            [worker.outcome for worker in self._workers],
            max(worker.ended for worker in self._workers) - now,
            sum(worker.count(progress.SENT) for worker in self._workers),
            sum(worker.count(progress.RESENT) for worker in self._workers),
            network.packets - packets_,
            network.lost - lost,
            network.nbytes - nbytes,
            [dict(zip(COUNTERS, switch.pool.counters.tolist(), strict=True)) for switch in self.switches],
        )

    def _run(self) -> None:
        """Let time pass until no worker waits. What is under way then arrives during the next call."""
        while self._waiting:
            self.network.step()


def _ranks_of(tree: Sequence[Any]) -> list[int]:
    return [rank for below in tree for rank in ([below] if isinstance(below, int) else _ranks_of(below))]


class _SwitchNode(Node):
    def __init__(self, network: Network, seconds: float, switch: Switch) -> None:
        super().__init__(network, seconds)
        self._switch = switch

    def arrive(self, packet: Outgoing, source: int) -> None:
        self._switch.see_queue(self.backlog())
        for answer in self._switch.receive(_in_one(packet), source, self.work()):
            self.send(answer)


def _in_one(packet: Outgoing) -> np.ndarray:
    nbytes = packet.header.size + packet.payload.size
    memory = aligned(nbytes)[:nbytes]
    memory[: packet.header.size] = packet.header
    memory[packet.header.size :] = packet.payload
    return memory


@dataclass(frozen=True, slots=True)
class _Job:
    """What the workers of a job have in common."""

    program: Program
    number: int
    size: int
    slots: int
    payload_nbytes: int
    deadline: float


class _Worker(Node):
    """What a client of the real switch does, but without waiting."""

    def __init__(self, network: Network, seconds: float, job: _Job, rank: int, waiting: set[_Worker]) -> None:
        super().__init__(network, seconds)
        #: The switch that it sends to.
        self.above = 0
        self.outcome: np.ndarray | CollcompError | None = None
        self.ended = 0.0
        self._job, self._rank, self._waiting = job, rank, waiting
        self._kernels = cpu.load("worker")
        self._worker = make_worker(job.program, job.number, 0, 1, job.size)
        self._payload_nbytes = self._floats = self._epoch = 0
        self._joined = self._dead = self._running = False
        #: The control packet that it waits for the answer to.
        self._question: Control | None = None
        self._wake = math.inf
        #: When the last sum came.
        self._moved = 0.0

    @property
    def program(self) -> Program:
        """What the switch does."""
        return self._job.program

    def count(self, fact: int) -> int:
        """One of the numbers of its last operation."""
        return int(self._worker.facts[fact])

    def die(self) -> None:
        """Do nothing more."""
        self._dead = True
        self._end(None)

    def _end(self, outcome: np.ndarray | CollcompError | None) -> None:
        self.outcome, self.ended = outcome, self.ready()
        self._question, self._running = None, False
        self._waiting.discard(self)

    # ------------------------------------------------------------------ questions

    def join(self) -> None:
        """Become a member of the job."""
        job = self._job
        self._waiting.add(self)
        nbytes = job.payload_nbytes
        self._ask(Control.join(job.number, job.size, [self._rank], job.slots, nbytes, nbytes // 2), job.deadline)

    def _ask(self, question: Control, seconds: float) -> None:
        self._question = question
        self._repeat(question, self.ready() + seconds)

    def _repeat(self, question: Control, until: float) -> None:
        if self._question is not question:
            return
        if self.network.now >= until:
            kind = "JOIN" if question.kind == packets.JOIN else "STATUS"
            self._give_up(f"the switch does not answer {kind}")
            return
        self._tell(question)
        self.network.at(self.network.now + _AGAIN_S, self._repeat, question, until)

    def _tell(self, control: Control) -> None:
        self.send(Outgoing(self.above, control.pack(), _NOTHING))

    def _give_up(self, why: str) -> None:
        text = f"rank {self._rank}: no sum after {self._job.deadline} s: {why}"
        self._tell(Control(packets.GIVE_UP, self._job.number, self._number(), self._epoch, body={"text": text}))
        self._end(DeadlineError(text))

    def _number(self) -> int:
        return int(self._worker.facts[progress.NUMBER])

    # ------------------------------------------------------------------ operations

    def call(self, operand: np.ndarray, lanes: int, when: float) -> None:
        """Begin an operation at a time, if this worker is a member and alive."""
        if self._dead or not self._joined:
            return
        self._waiting.add(self)
        self._epoch += 1
        self.network.at(when, self._start, operand, lanes, self._epoch)

    def _start(self, operand: np.ndarray, lanes: int, epoch: int) -> None:
        if self._dead:
            return
        width = packets.WIDTHS[lanes]
        count = self._payload_nbytes // width
        if lanes <= packets.BFLOAT16:
            count = min(count, self._floats)
        send = np.ascontiguousarray(operand).reshape(-1).view(np.uint8).copy()
        signature = zlib.crc32(f"{lanes} {send.size}".encode())
        self._sum = np.empty_like(operand, order="C")
        recv = self._sum.reshape(-1).view(np.uint8)
        self._worker = begin(self._worker, send, recv, lanes, count * width, epoch, signature)
        self._kernels.start(self._worker, self.ready())
        self._running = True
        self._moved = self.network.now
        self.network.at(self._moved + self._job.deadline, self._overdue, epoch)
        self._pump()

    def _pump(self) -> None:
        """Send what is due, and wake up when more will be."""
        worker = self._worker
        while True:
            now = self.ready()
            slot, soonest = self._kernels.next_due(worker, now)
            if slot < 0:
                break
            header = aligned(packets.HEADER_NBYTES)
            low, nbytes = self._kernels.prepare(worker, slot, now, header.view(np.uint64))
            self.send(Outgoing(self.above, header, worker.payload[low : low + nbytes]))
        if soonest < self._wake:
            self._wake = soonest
            self.network.at(soonest, self._wake_up)

    def _wake_up(self) -> None:
        if self._wake == self.network.now:  # not one that an earlier one has made superfluous
            self._wake = math.inf
            if self._running:
                self._pump()

    def _overdue(self, epoch: int) -> None:
        """Ask for whom the switch waits."""
        if not self._running or epoch != self._epoch:
            return
        if self._moved + self._job.deadline > self.network.now:
            self.network.at(self._moved + self._job.deadline, self._overdue, epoch)
            return
        worker = self._worker
        slot = int(np.flatnonzero((worker.chunks >= 0) & (worker.tries > 0))[0])
        chunk = int(worker.chunks[slot])
        self._ask(Control(packets.STATUS, self._job.number, self._number(), epoch, chunk, slot), _ASKING_S)

    # ------------------------------------------------------------------ arrivals

    def arrive(self, packet: Outgoing, source: int) -> None:
        if self._dead:
            return
        now = self.work()
        memory = _in_one(packet)
        if memory[4] != packets.RESULT:
            control = Control.unpack(memory)
            if control is not None:
                self._control(control)
        elif self._running:
            words = memory[: packets.HEADER_NBYTES].view(np.uint64)
            if self._kernels.accept(self._worker, memory, words, memory.size, now):
                self._moved = self.network.now
                if self._worker.facts[progress.MISSING]:
                    self._pump()
                else:
                    self._end(self._sum)

    def _control(self, control: Control) -> None:
        body, asked = control.body or {}, self._question
        if control.kind == packets.FAILURE:
            if self._running and control.epoch in (0, self._epoch):
                self._end(FrameError(body["text"]))
        elif asked is None:
            return
        elif control.kind == packets.WELCOME and asked.kind == packets.JOIN:
            self._worker = make_worker(
                self._job.program, self._job.number, body["worker"], body["slots"], self._job.size
            )
            self._payload_nbytes, self._floats = body["payload"], body["floats"]
            self._joined = True
            self._end(None)
        elif control.kind == packets.REFUSAL and asked.kind == packets.JOIN:
            self._end(TransportError(body["text"]))
        elif control.kind == packets.MISSING and asked.kind == packets.STATUS:
            if (control.epoch, control.chunk, control.slot) != (asked.epoch, asked.chunk, asked.slot):
                return
            ranks = ", ".join(map(str, body["ranks"]))
            self._give_up(f"the switch waits for rank {ranks}" if ranks else "packets are lost or late")
