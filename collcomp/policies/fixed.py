"""One codec for every message that is large enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

from collcomp.codecs import Codec, Identity
from collcomp.collectives import NATIVE, Plan
from collcomp.policies.base import Call, plan_for, unsuited

__all__ = ["DEFAULT_MIN_NBYTES", "Fixed"]

#: Smaller messages wait for latency, not for bandwidth. The value is BytePS's (``BYTEPS_MIN_COMPRESS_BYTES``).
DEFAULT_MIN_NBYTES = 65536


@dataclass(frozen=True)
class Fixed:
    """Use `codec` for messages of at least `min_nbytes`; everything else goes to the native library.

    Parameters
    ----------
    codec : Codec, optional
        None: everything is native.
    min_nbytes : int
    algorithm : str, optional
        Instead of the default one.
    """

    codec: Codec | None = None
    min_nbytes: int = DEFAULT_MIN_NBYTES
    algorithm: str | None = None

    def plan(self, call: Call) -> Plan:
        """The plan of `call`."""
        if self.codec is None:
            return Plan(NATIVE, Identity())
        if not call.uniform:
            reason = "ranks do not know each other's sizes; name a codec in the call"
        elif call.nbytes < self.min_nbytes:
            reason = f"{call.nbytes} bytes are fewer than min_nbytes={self.min_nbytes}"
        else:
            reason = unsuited(call, self.codec) or ""
        if reason:
            return Plan(NATIVE, Identity(), reason=reason)
        return plan_for(call, self.codec, self.algorithm)

    def native_below(self, collective: str) -> float:
        """Messages of fewer bytes are native, whatever their dtype."""
        return math.inf if self.codec is None else self.min_nbytes
