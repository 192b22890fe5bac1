"""Packets that carry no elements: workers and switches join, leave, give up, and ask who is late."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from collcomp.kernels.cpu.packets import HEADER_NBYTES, JOIN, KINDS, MAGIC

__all__ = ["LONGEST_NBYTES", "Control", "brief"]

_HEADER = struct.Struct("<IBBHQQIIIIiHH")
assert _HEADER.size == HEADER_NBYTES

#: Bytes that the body of a control packet has at most.
LONGEST_NBYTES = 1200
# Characters of a text in one, each of which may take two bytes.
_LONGEST_TEXT = 500


def brief(text: str) -> str:
    """As much of `text` as a control packet has room for, in ASCII."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:_LONGEST_TEXT])


@dataclass(frozen=True, slots=True)
class Control:
    """One such packet.

    Attributes
    ----------
    kind : int
        One of the control kinds of `collcomp.kernels.cpu.packets`.
    job : int
    worker : int
        Number of the worker in the job, as the switch has it.
    epoch, chunk, slot : int
        What it is about, where it is about an operation.
    body : dict
        The rest, as JSON on the wire.
    """

    kind: int
    job: int
    worker: int = 0
    epoch: int = 0
    chunk: int = 0
    slot: int = 0
    body: dict[str, Any] | None = None

    @classmethod
    def join(cls, job: int, size: int, ranks: list[Any], slots: int, payload_nbytes: int, floats: int) -> Control:
        """The wish to join: `ranks`, or runs of ranks as pairs (first, last), of a job of so many; most that is wanted.

        `slots` are the packets that are to be under way; a packet has `payload_nbytes` and `floats` at most.
        """
        body = {"size": size, "ranks": ranks, "slots": slots, "payload": payload_nbytes, "floats": floats}
        return cls(JOIN, job, body=body)

    def pack(self) -> np.ndarray:
        """The packet, uint8."""
        body = json.dumps(self.body or {}).encode()
        if len(body) > LONGEST_NBYTES:
            raise ValueError(f"body: {len(body)} bytes, {LONGEST_NBYTES} at most")
        header = _HEADER.pack(
            MAGIC, self.kind, 0, self.worker, self.job, self.epoch, self.chunk, self.slot, 0, 0, 0, 0, 0
        )  # fmt: skip
        return np.frombuffer(header + body, np.uint8)

    @classmethod
    def unpack(cls, packet: np.ndarray) -> Control | None:
        """What is in a packet from the network; None where it is none of these."""
        data = packet.tobytes()
        if not HEADER_NBYTES <= len(data) <= HEADER_NBYTES + LONGEST_NBYTES:
            return None
        magic, kind, _, worker, job, epoch, chunk, slot, *_ = _HEADER.unpack_from(data)
        if magic != MAGIC or kind >= KINDS:
            return None
        try:
            body = json.loads(data[HEADER_NBYTES:])
        except (ValueError, RecursionError):
            return None
        return cls(kind, job, worker, epoch, chunk, slot, body) if isinstance(body, dict) else None
