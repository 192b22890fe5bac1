"""Which codec and algorithm a message gets."""

from collcomp.policies.base import Call, Policy, is_float, plan_for, unsuited
from collcomp.policies.by_collective import ByCollective
from collcomp.policies.fixed import DEFAULT_MIN_NBYTES, Fixed
from collcomp.policies.tables import Decay, TableBounds, bound_class, homogenization_index

__all__ = [
    "DEFAULT_MIN_NBYTES",
    "ByCollective",
    "Call",
    "Decay",
    "Fixed",
    "Policy",
    "TableBounds",
    "bound_class",
    "homogenization_index",
    "is_float",
    "plan_for",
    "unsuited",
]
