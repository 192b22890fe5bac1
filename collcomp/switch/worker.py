"""One worker's side of operations through a switch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from collcomp.kernels.cpu import packets, progress
from collcomp.switch.programs import Program

__all__ = ["Worker", "begin", "make_worker"]

# Lanes of which packets carry other numbers than the message.
_STAGED = (packets.BLOCK32, packets.FIXED32)


class Worker(NamedTuple):
    """What `collcomp.kernels.cpu.worker` knows of a worker and the operation that it is at.

    Attributes
    ----------
    facts : ndarray of int64, shape (FACTS,)
        See `collcomp.kernels.cpu.progress`.
    clock : ndarray of float64, shape (CLOCK,)
    chunks, tries : ndarray of int64, shape (slots,)
        The chunk that each slot is at, -1 for none, and how often it was sent.
    sent, due : ndarray of float64, shape (slots,)
        When it was sent, and when it is to be sent next.
    exponents : ndarray of int64, shape (slots,)
        Of the elements that are to be sent next in each slot, where they are sent in block fixed point.
    floats : ndarray of uint8, shape (slots,)
        Whether the slot's chunk is sent as floats because fixed point were too small.
    send, recv : ndarray of uint8
        The message and where its sum goes.
    payload : ndarray of uint8
        What packets carry: `send` itself, or a chunk of integers for every slot.
    """

    facts: np.ndarray
    clock: np.ndarray
    chunks: np.ndarray
    tries: np.ndarray
    sent: np.ndarray
    due: np.ndarray
    exponents: np.ndarray
    floats: np.ndarray
    send: np.ndarray
    recv: np.ndarray
    payload: np.ndarray


def make_worker(program: Program, job: int, number: int, slots: int, workers: int) -> Worker:
    """Worker `number` of a job with so many slots and workers."""
    nothing = np.empty(0, np.uint8)
    worker = Worker(
        facts=np.zeros(progress.FACTS, np.int64),
        clock=np.zeros(progress.CLOCK),
        chunks=np.zeros(slots, np.int64),
        tries=np.zeros(slots, np.int64),
        sent=np.zeros(slots),
        due=np.zeros(slots),
        exponents=np.zeros(slots, np.int64),
        floats=np.zeros(slots, np.uint8),
        send=nothing,
        recv=nothing,
        payload=nothing,
    )
    facts, clock = worker.facts, worker.clock
    facts[progress.JOB], facts[progress.NUMBER] = job, number
    facts[progress.SLOTS] = facts[progress.WINDOW] = slots
    facts[progress.WORKERS] = workers
    clock[progress.TIMER], clock[progress.FLOOR], clock[progress.CEILING] = program.timer
    clock[progress.ADAPTIVE], clock[progress.THRESHOLD] = program.adaptive, progress.PATIENT
    clock[progress.BACK_OFF] = 1
    clock[progress.PATIENCE] = progress.PATIENT
    return worker


def begin(
    worker: Worker, send: np.ndarray, recv: np.ndarray, lanes: int, chunk_nbytes: int, epoch: int, signature: int
) -> Worker:
    """The worker at a new operation: `send` and `recv` are bytes (uint8) of equal number, in chunks of so many."""
    facts = worker.facts
    facts[progress.EPOCH], facts[progress.SIGNATURE] = epoch, signature
    facts[progress.LANES], facts[progress.WIDTH] = lanes, packets.WIDTHS[lanes]
    facts[progress.CHUNK_NBYTES] = chunk_nbytes
    facts[progress.LEAD] = facts[progress.SLOTS] if lanes == packets.BLOCK32 else 0
    # An empty message is a packet, too.
    facts[progress.CHUNKS] = max(1, -(-send.size // chunk_nbytes)) + facts[progress.LEAD]
    if lanes not in _STAGED:
        return worker._replace(send=send, recv=recv, payload=send)
    nbytes = int(facts[progress.SLOTS]) * chunk_nbytes
    payload = worker.payload
    if payload is worker.send or payload.size != nbytes:  # a message of the operation before is not ours to write to
        payload = np.empty(nbytes, np.uint8)
    return worker._replace(send=send, recv=recv, payload=payload)
