"""Which codec and algorithm a message gets."""

from collcomp.codecs import Codec, as_codec
from collcomp.policies.auto import Auto, is_auto
from collcomp.policies.base import Call, Policy, is_float, plan_for, unsuited
from collcomp.policies.by_collective import ByCollective
from collcomp.policies.fixed import DEFAULT_MIN_NBYTES, Fixed
from collcomp.policies.tables import Decay, TableBounds, bound_class, homogenization_index

__all__ = [
    "DEFAULT_MIN_NBYTES",
    "Auto",
    "ByCollective",
    "Call",
    "Decay",
    "Fixed",
    "Policy",
    "TableBounds",
    "bound_class",
    "homogenization_index",
    "is_auto",
    "is_float",
    "plan_for",
    "policy_of",
    "unsuited",
]


def policy_of(codec: str | Codec | None, min_nbytes: int = DEFAULT_MIN_NBYTES) -> Policy:
    """The policy that a communicator's ``codec=`` stands for: `Auto`, or that codec for large enough messages."""
    if is_auto(codec):
        return Auto.from_spec(str(codec))
    return Fixed(None if codec is None else as_codec(codec), min_nbytes)
