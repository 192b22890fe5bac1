"""What switches can be programmed to do: one program of ours, and two published systems with their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from collcomp.kernels.cpu import packets

__all__ = ["ATP", "EXACT", "PROGRAMS", "Program", "lanes_for", "switchml"]


@dataclass(frozen=True, slots=True)
class Program:
    """How a switch sums, and how workers talk to it.

    Attributes
    ----------
    name : str
    payload_nbytes : int or None
        Of each packet; as many as the path takes where None.
    slots : int
        In the whole pool, two rows of registers each.
    lanes : tuple of int
        What it can combine, see `collcomp.kernels.cpu.packets`.
    timer : tuple of float
        Seconds after which an unanswered packet is sent again: at first, at least, at most.
    adaptive : bool
        Whether that follows the round-trip times, and doubles with each try.
    most_workers : int or None
        Of a job, where the program has a limit of its own.
    aggregators : int
        That all jobs share, before a parameter server; 0 where each job has slots of its own.
    mark_nbytes : int or None
        Length of a queue from which on sums are marked; None where they never are.
    """

    name: str
    payload_nbytes: int | None
    slots: int
    lanes: tuple[int, ...]
    timer: tuple[float, float, float]
    adaptive: bool
    most_workers: int | None = None
    aggregators: int = 0
    mark_nbytes: int | None = None

    def most_floats(self, payload_nbytes: int) -> int:
        """How many floats of a payload the program sums exactly, at most."""
        kinds = (packets.FLOAT32, packets.FLOAT16, packets.BFLOAT16, packets.FIXED32)
        return max((payload_nbytes // packets.WIDTHS[lanes] for lanes in self.lanes if lanes in kinds), default=0)


#: Sums of floats, rounded once; integers modulo their width; largest unsigned integers; bits.
EXACT = Program("exact", None, 512, tuple(range(packets.OR8 + 1)), (0.05, 0.01, 0.25), True)


def switchml(elements: int = 256) -> Program:
    """SwitchML: int32 added modulo ``2**32``, floats in block fixed point with an exponent a packet.

    Sums of floats: each worker's number is rounded to a step of ``workers * 2**e / (2**31 - 1)``, where all magnitudes
    of the packet's elements, on any worker, are below ``2**e``; then the sum to float32. As in the original, magnitudes
    of ``2**127`` and more, infinities and NaN spoil the packet's sums without a sign of it: the int8 exponent wraps
    around (-128; -127 for infinity), so that they decode to zeros, of either sign, or, where another worker's exponent
    is larger, count as ``-workers * 2**e``, as NaN does. So do packets below ``2**-97 / workers`` decode to zeros, and
    those at or above ``2**127 / workers`` to NaN.

    Numbers of the public implementation (p4lang/p4app-switchML): slots, elements, most workers, the timer of 10 ms
    that is doubled after 100 timeouts, then after 200 more, and so on; here not beyond 1 s. There, packets say their
    version in one bit; here, by the chunk's number.

    Parameters
    ----------
    elements : {64, 256}
        Of a packet.

    Raises
    ------
    ValueError
        If `elements` is another number.

    Source: Sapio et al., "Scaling Distributed Machine Learning with In-Network Aggregation", NSDI 2021.
    """
    if elements not in (64, 256):
        raise ValueError(f"elements must be 64 or 256, not {elements}")
    lanes = (packets.ADD32, packets.BLOCK32)
    return Program("switchml", 4 * elements, 8192, lanes, (0.01, 0.01, 1.0), False, most_workers=32)


#: ATP: aggregators that all jobs share, chosen by a hash, and a parameter server for what finds its own taken. Sums of
#: int32 stop at the ends of the range. Floats are int32 in units of 1e-6: each worker's number is rounded to one, then
#: the sum to float32; smaller numbers are lost. Chunks with numbers beyond 213, NaN, or sums beyond 2147, are sent as
#: floats and summed exactly. See `collcomp.kernels.cpu.atp`, also for what is different from the original.
#:
#: Numbers of the public implementation (in-ATP/ATP): 62 elements a packet; 40,000 rows of 31 registers, of which a
#: packet takes two; a bitmap of 32 workers; marks from a queue of 1,000 cells (of 80 bytes) on. There, workers wait
#: 50 ms for the first sum and send all again that is missing 0.2 ms after the last one, or before one that is there.
#: With a timer for each chunk, 0.2 ms would be less than the round trip of slow links and double all packets: it is
#: the least here, and the timer follows round-trip times. Slots are the server's memory, which bounds windows only.
ATP = Program(
    "atp", 4 * 62, 8192, (packets.SAT32, packets.FIXED32), (0.05, 0.0002, 1.0), True,
    most_workers=32, aggregators=20000, mark_nbytes=80000,
)  # fmt: skip

PROGRAMS = {program.name: program for program in (EXACT, switchml(), ATP)}

# What an operation can be done in, the program's own lanes first.
_LANES: dict[tuple[np.dtype, str], tuple[int, ...]] = {
    (np.dtype(np.float32), "sum"): (packets.FLOAT32, packets.BLOCK32, packets.FIXED32),
    (np.dtype(np.float16), "sum"): (packets.FLOAT16,),
    (np.dtype(ml_dtypes.bfloat16), "sum"): (packets.BFLOAT16,),
    (np.dtype(np.int8), "sum"): (packets.ADD8,),
    (np.dtype(np.uint8), "sum"): (packets.ADD8,),
    (np.dtype(np.int16), "sum"): (packets.ADD16,),
    (np.dtype(np.uint16), "sum"): (packets.ADD16,),
    (np.dtype(np.int32), "sum"): (packets.ADD32, packets.SAT32),
    (np.dtype(np.uint32), "sum"): (packets.ADD32,),
    (np.dtype(np.int64), "sum"): (packets.ADD64,),
    (np.dtype(np.uint64), "sum"): (packets.ADD64,),
    (np.dtype(np.uint8), "max"): (packets.MAX8,),
    (np.dtype(np.uint16), "max"): (packets.MAX16,),
    (np.dtype(np.uint32), "max"): (packets.MAX32,),
    (np.dtype(np.uint64), "max"): (packets.MAX64,),
    (np.dtype(np.uint8), "or"): (packets.OR8,),
}


def lanes_for(program: Program, dtype: Any, op: str) -> int:
    """How a program's packets carry an operation.

    Parameters
    ----------
    program : Program
    dtype : dtype
        Anything that `numpy.dtype` takes.
    op : {"sum", "max", "or"}
        Integers are summed modulo ``2**width`` (by ATP, up to the ends of int32); "max" is of unsigned integers, "or"
        of bytes.

    Returns
    -------
    int
        Lanes, see `collcomp.kernels.cpu.packets`.

    Raises
    ------
    ValueError
        If the program has no such operation.
    TypeError
        If it has it, but not of such elements.
    """
    dtype = np.dtype(dtype)
    can = {
        (kind, name): [lanes for lanes in candidates if lanes in program.lanes]
        for (kind, name), candidates in _LANES.items()
    }
    ops = sorted({name for (_, name), lanes in can.items() if lanes})
    if op not in ops:
        raise ValueError(f"op: program {program.name!r} of the switch has {', '.join(ops)}, not {op!r}")
    if not can.get((dtype, op)):
        kinds = ", ".join(str(kind) for (kind, name), lanes in can.items() if lanes and name == op)
        raise TypeError(f"dtype: program {program.name!r} of the switch has {op} of {kinds}, not of {dtype}")
    return can[dtype, op][0]
