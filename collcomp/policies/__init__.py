"""Which codec and algorithm a message gets."""

from collcomp.policies.base import Call, Policy, is_float, plan_for, unsuited
from collcomp.policies.fixed import DEFAULT_MIN_NBYTES, Fixed

__all__ = ["DEFAULT_MIN_NBYTES", "Call", "Fixed", "Policy", "is_float", "plan_for", "unsuited"]
