"""Algorithms: plain functions over an `Exchange`, one file each.

To add one, write its file and its line in `ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collcomp.collectives import direct, gathered, hierarchical, merged, ring, summed, switched
from collcomp.collectives.exchange import Exchange
from collcomp.collectives.plan import Plan
from collcomp.collectives.reduction import OPS

__all__ = [
    "ALGORITHMS",
    "HIERARCHICAL",
    "MERGED",
    "NATIVE",
    "OPS",
    "REQUIRED",
    "RING",
    "SUMMED",
    "SWITCHED",
    "Exchange",
    "Plan",
]

#: The algorithm that is none of ours: the call goes to the library underneath.
NATIVE = "native"
#: The algorithms that a layout has an order or groups for.
RING, HIERARCHICAL = "ring", "hierarchical"
#: The algorithm that needs a switch, and the one that adds selections.
SWITCHED, MERGED = "switched", "merged"
#: The algorithm of codecs whose payloads add.
SUMMED = "summed"

#: What a codec has to be for an algorithm: one of these attributes of `Codec`.
REQUIRED = {MERGED: ("sparse",), SUMMED: ("summable",), SWITCHED: ("verbatim", "summable")}

#: What does which collective how.
ALGORITHMS: dict[str, dict[str, Callable[..., Any]]] = {
    "direct": {
        "allgather": direct.allgather,
        "allreduce": direct.allreduce,
        "alltoall": direct.alltoall,
        "bcast": direct.bcast,
        "gather": direct.gather,
        "reduce": direct.reduce,
        "reduce_scatter": direct.reduce_scatter,
        "scatter": direct.scatter,
    },
    RING: {"allreduce": ring.allreduce},
    HIERARCHICAL: {"allreduce": hierarchical.allreduce},
    "gathered": {"allreduce": gathered.allreduce, "reduce": gathered.reduce},
    MERGED: {"allreduce": merged.allreduce, "reduce": merged.reduce},
    SUMMED: {"allreduce": summed.allreduce},
    SWITCHED: {"allreduce": switched.allreduce},
}
