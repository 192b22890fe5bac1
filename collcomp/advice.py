"""What would win at each size, in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collcomp.collectives import NATIVE
from collcomp.policies import Auto, Call
from collcomp.policies.auto import Choice
from collcomp.units import bytes_text, seconds_text

__all__ = ["advice"]

_RUNNERS_UP = 2


def advice(policy: Auto, collective: str, sizes: Sequence[int]) -> str:
    """The fastest ways by size, predicted for float32; one line for each size. `Auto` asks for 3% more than "faster".

    Parameters
    ----------
    policy : Auto
        With a model.
    collective : str
    sizes : sequence of int
        Bytes.

    Raises
    ------
    ValueError
        If the policy has no model.
    """
    model = policy.model
    if model is None:
        raise ValueError("policy: knows nothing of a communicator")
    op = "sum" if "reduce" in collective else None
    lines = [f"{'size':>9}  {'native':>9}  {'fastest':<28}{'time':>10}{'faster':>9}  next"]
    for nbytes in sizes:
        choices = policy.choices(Call(collective, nbytes, np.dtype(np.float32), op, model.size))
        native = next(choice for choice in choices if choice.plan.algorithm == NATIVE)
        best, *others = choices
        runners_up = ", ".join(f"{_way(other)} {seconds_text(other.seconds)}" for other in others[:_RUNNERS_UP])
        lines.append(
            f"{bytes_text(nbytes):>9}  {seconds_text(native.seconds):>9}  {_way(best):<28}"
            f"{seconds_text(best.seconds):>10}{native.seconds / best.seconds:>8.2f}x  {runners_up}"
        )
    return "\n".join(lines)


def _way(choice: Choice) -> str:
    return NATIVE if choice.plan.algorithm == NATIVE else f"{choice.plan.algorithm} {choice.codec}"
