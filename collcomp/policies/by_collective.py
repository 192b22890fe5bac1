"""A policy for each collective, because each carries something else: gradients, parameters, activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from collcomp.collectives import Plan
from collcomp.policies.base import Call, Policy
from collcomp.policies.fixed import Fixed

__all__ = ["ByCollective"]


@dataclass(frozen=True)
class ByCollective:
    """Plan each call by the policy of its collective; those that have none go to the native library.

    Parameters
    ----------
    policies : mapping of str to Policy
        By the collective's name: ``"allreduce"``, ``"allgather"``, ...
    """

    policies: Mapping[str, Policy] = field(default_factory=dict)

    def plan(self, call: Call) -> Plan:
        """The plan of `call`."""
        return self.policies.get(call.collective, _NATIVE).plan(call)


_NATIVE = Fixed()
