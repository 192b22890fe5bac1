"""What a training run of the GPT leaves behind, and the file that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from ..ranks import MeasurementError
from ..table import write_rows

__all__ = ["Point", "Result", "load", "save", "seconds_to"]


class Point(NamedTuple):
    """The validation loss after so many steps.

    `seconds` and `nbytes` are what the steps took: neither validation nor start-up is in them. Bytes are those that the
    busiest rank's interface has sent, None where the links are not shaped.
    """

    step: int
    seconds: float
    nbytes: float | None
    loss: float


@dataclass(frozen=True)
class Result:
    """One training run of the GPT.

    Attributes
    ----------
    model, codec : str
        `codec` is the spec of one, "none", or a name of `collcomp.bench.arguments.TORCH_HOOKS`.
    ranks : int
    link : str
    seed, steps : int
    loss : float
        On held-out text after `steps` steps, nats a character, of weights averaged over the last steps.
    step_seconds : float
        Median over steps of the slowest rank.
    wire_bytes : float or None
        That the busiest rank's interface sent per step, in the first `steps`; None where the links are not shaped.
    target_loss : float or None
        The `loss` of the run without compression that began with the same seed; None where there was none.
    seconds_to_target : float or None
        Training time until the loss was `target_loss`, see `seconds_to`; None if it never was.
    curve : list of Point
        From the untrained model on. A run that has not reached the target after `steps` goes on for half as many again.
    """

    model: str
    codec: str
    ranks: int
    link: str
    seed: int
    steps: int
    loss: float
    step_seconds: float
    wire_bytes: float | None
    target_loss: float | None
    seconds_to_target: float | None
    curve: list[Point]


def seconds_to(curve: Sequence[Point], target: float) -> float | None:
    """Training time until the validation loss first was `target` or less.

    The loss is taken to change linearly between validations; it is not smoothed.

    Examples
    --------
    >>> seconds_to([Point(0, 0.0, None, 4.0), Point(10, 5.0, None, 3.0)], 3.2)
    4.0
    """
    if curve[0].loss <= target:
        return curve[0].seconds
    for before, after in pairwise(curve):
        if after.loss <= target:
            share = (before.loss - target) / (before.loss - after.loss)
            return before.seconds + share * (after.seconds - before.seconds)
    return None


def load(path: str, settings: Mapping[str, Any]) -> list[Result]:
    """Results of an earlier start with the same settings; none if there is no such file.

    Parameters
    ----------
    path : str
    settings : mapping of str to value
        Attributes that all results must share; each has an option of its name.

    Raises
    ------
    MeasurementError
        If the file has other content, or results of other settings.
    """
    if not os.path.exists(path):
        return []
    try:
        with open(path) as file:
            entries = [dict(entry) for entry in json.load(file)]
    except (OSError, TypeError, ValueError) as error:
        raise MeasurementError(f"--json: {path} holds no results to go on from ({error})") from None
    for entry in entries:
        for name, value in settings.items():
            if entry.get(name) != value:
                raise MeasurementError(
                    f"--json: {path} holds results of --{name} {entry.get(name)}, not {value}; name another file"
                )
    try:
        return [Result(**{**entry, "curve": [Point(*point) for point in entry["curve"]]}) for entry in entries]
    except (KeyError, TypeError) as error:
        raise MeasurementError(f"--json: {path} holds no results to go on from ({error})") from None


def save(path: str, results: Sequence[Result]) -> None:
    """Replace the file in one move, so that a run that is killed meanwhile leaves a whole one."""
    partial = f"{path}.partial"
    write_rows(partial, results)
    os.replace(partial, path)
