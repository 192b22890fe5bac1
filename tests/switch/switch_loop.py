"""Workers and a switch in one loop: packets are lost, doubled and reordered as a seed says."""

import numpy as np

from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets, progress
from collcomp.switch.control import Control
from collcomp.switch.pool import aligned
from collcomp.switch.programs import lanes_for
from collcomp.switch.switch import Switch
from collcomp.switch.worker import begin, make_worker

STEP_S = 0.001


class Job:
    """The workers of a job that all have joined `switch`."""

    def __init__(self, switch, number, size, slots=4):
        self.switch, self.number, self.size, self.slots, self.epoch = switch, number, size, slots, 0
        self.names = [1000 * number + rank for rank in range(size)]
        body = {"size": size, "slots": slots, "payload": switch.payload_nbytes, "floats": switch.payload_nbytes // 2}
        for rank, name in enumerate(self.names):
            join = Control(packets.JOIN, number, rank, body={**body, "ranks": [rank]})
            self.answers = [unpacked(out) for out in switch.receive(join.pack(), name, 0.0)]
        assert [answer.kind for answer in self.answers] == [packets.WELCOME] * size
        self.slots = self.answers[0].body["slots"]
        self.workers = [make_worker(switch.program, number, rank, self.slots, size) for rank in range(size)]

    def begin(self, arrays, op="sum"):
        self.epoch += 1
        lanes = lanes_for(self.switch.program, arrays[0].dtype, op)
        kernels = cpu.load("worker")
        for rank, array in enumerate(arrays):
            recv = np.empty(array.nbytes, np.uint8)
            self.workers[rank] = begin(
                self.workers[rank], array.view(np.uint8), recv, lanes, self.switch.payload_nbytes, self.epoch, 5
            )
            kernels.start(self.workers[rank], 0.0)
        self.dtype = arrays[0].dtype


def unpacked(out):
    return Control.unpack(np.concatenate([out.header, out.payload]))


def ready(worker, now):
    """The packets that a worker is to send now."""
    kernels, found = cpu.load("worker"), []
    while True:
        slot, _ = kernels.next_due(worker, now)
        if slot < 0:
            return found
        header = aligned(packets.HEADER_NBYTES)
        low, nbytes = kernels.prepare(worker, slot, now, header.view(np.uint64))
        found.append(np.concatenate([header, worker.payload[low : low + nbytes]]))


def take(worker, out, now=0.0):
    """Give a worker a packet from the switch; whether it wanted it."""
    packet = aligned(packets.HEADER_NBYTES + out.payload.size)
    packet[: packets.HEADER_NBYTES] = out.header
    packet[packets.HEADER_NBYTES : packets.HEADER_NBYTES + out.payload.size] = out.payload
    nbytes = packets.HEADER_NBYTES + out.payload.size
    return cpu.load("worker").accept(worker, packet, packet.view(np.uint64), nbytes, now)


def finish(jobs, seed=0, loss=0.0, duplicates=0.0, limit=20000):
    """Run jobs that have begun until all workers have all sums; the sums, by job and rank."""
    rng = np.random.default_rng(seed)
    switch = jobs[0].switch
    owners = {name: (job, rank) for job in jobs for rank, name in enumerate(job.names)}
    in_flight, now = [], 0.0
    for _ in range(limit):
        if not any(worker.facts[progress.MISSING] for job in jobs for worker in job.workers):
            break
        for name, (job, rank) in owners.items():
            in_flight += [(name, packet) for packet in ready(job.workers[rank], now)]
        arriving, in_flight = in_flight, []
        if loss or duplicates:
            rng.shuffle(arriving)
        for name, packet in arriving:
            copies = 0 if rng.random() < loss else 2 if rng.random() < duplicates else 1
            for _ in range(copies):
                for out in switch.receive(packet, name, now):
                    if rng.random() >= loss:
                        job, rank = owners[out.name]
                        take(job.workers[rank], out, now)
        now += STEP_S
    else:
        raise AssertionError(f"not done after {limit} steps")
    return [[worker.recv.view(job.dtype) for worker in job.workers] for job in jobs]


def summed(program, arrays, *, switch=None, slots=4, op="sum", **chances):
    """The sums that every rank gets of one operation through a switch of its own."""
    switch = switch or new_switch(program)
    job = Job(switch, 7, len(arrays), slots)
    job.begin(arrays, op)
    return finish([job], **chances)[0]


def new_switch(program, slots=16):
    return Switch(program, slots=slots, payload_nbytes=program.payload_nbytes or 1024)
