"""Sums in a switch that the data pass through: every rank sends its message once and receives the sum once.

Without a codec the sum of floats is rounded once, whatever the order in which the packets arrive; with a codec whose
payloads add, the rounds of its reduction go through the switch (but for sums of float64, which go from rank to rank).
"""

from __future__ import annotations

import zlib

import numpy as np

from collcomp.collectives import direct
from collcomp.collectives.exchange import Exchange
from collcomp.frame import dtype_code
from collcomp.switch.lanes import carried_as, from_lanes, to_lanes
from collcomp.switch.programs import Program, lanes_for

__all__ = ["allreduce"]

# Rounds of an operation, each of which is one for the switch. The first is that of calls without a codec, or makes sure
# that the calls agree; the last is no codec's, either: rank 0 names the job in it.
_ROUNDS = 8
_NOTHING = np.empty(0, np.uint8)


def allreduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, op: str) -> None:
    """Combine `send` of all ranks into `recv` of all ranks; both may be the same array."""
    if ex.codec.verbatim:
        _reduce(ex, send, recv, "sum" if op == "avg" else op, 0, op)
        dst = recv
    else:
        src = send if send.dtype == ex.dtype else send.astype(ex.dtype)
        dst = recv if recv.dtype == ex.dtype else np.empty(recv.size, ex.dtype)
        residual, state = ex.remembered(slice(0, send.size))
        rounds = ex.codec.reduction(
            src, dst, ex.size, shared=ex.shared_stream, stream=ex.stream, residual=residual, state=state
        )
        # Nothing is remembered of calls that differ, and a switch is asked before any round goes past it.
        _reduce(ex, _NOTHING, _NOTHING, "or", 0, op)
        for number, (array, how) in enumerate(rounds, start=1):
            flat = array.reshape(-1)
            if array.dtype == np.float64 and how == "sum":  # which no switch does
                with ex.nested(flat, number) as inner:
                    direct.allreduce(inner, flat, flat, how)
            else:
                _reduce(ex, flat, flat, how, number, op)
        ex.error_sq = None  # no rank knows what the others' agreement made its operand lose
    if op == "avg":
        np.divide(dst, ex.size, out=dst, casting="unsafe")
    if dst is not recv:
        recv[...] = dst
    ex.raw_nbytes = send.nbytes


def _reduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, how: str, number: int, op: str) -> None:
    """One round: `send` of all ranks into `recv`."""
    assert ex.switch is not None
    assert number < _ROUNDS - 1, "more rounds than epochs"
    epoch = (ex.envelope.sequence + 1) * _ROUNDS + number
    message = ex.envelope
    ordered = how in ("max", "min")
    there = np.empty(recv.nbytes, np.uint8) if ordered else recv.view(np.uint8)
    try:
        client = ex.switch.client(lambda array: _share(ex, array), deadline=ex.deadline, check=ex.heed_notice)
        lanes = _lanes(ex, client.program, send.dtype, how)
        facts = (
            ex.codec.number, ex.codec.digest, number, op, lanes, send.size, message.total, dtype_code(message.dtype),
        )  # fmt: skip
        ex.wire_nbytes += client.reduce(
            to_lanes(send, how), there, lanes, epoch, zlib.crc32(repr(facts).encode()),
            deadline=ex.deadline, check=ex.heed_notice,
        )  # fmt: skip
    except BaseException as error:
        ex.switch.give_up(epoch, error)
        raise
    if ordered:
        from_lanes(there, recv, how)


def _lanes(ex: Exchange, program: Program, dtype: np.dtype, how: str) -> int:
    try:
        return lanes_for(program, *carried_as(dtype, how))
    except (TypeError, ValueError) as error:
        if ex.codec.verbatim:
            raise
        text = f"codec: {ex.codec.spec!r} cannot go through a switch that runs program {program.name!r}: {error}"
        raise type(error)(text) from None


def _share(ex: Exchange, array: np.ndarray) -> None:
    """Give all ranks the `array` of rank 0."""
    with ex.nested(array, _ROUNDS - 1) as inner:
        direct.bcast(inner, array, 0)
