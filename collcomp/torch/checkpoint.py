"""What engines remember, as dicts of tensors, numbers and strings, which `torch.load` takes without pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from collcomp import feedback
from collcomp.communicator import Communicator

__all__ = ["engine_state", "load_engine_state", "reshard"]


def engine_state(engine: Communicator) -> dict[str, Any]:
    """What `engine` remembers of tensors, and how far its random numbers are."""
    return {"draw": engine.draw, "memory": _convert(engine.residuals.state_dict(), np.ndarray, torch.tensor)}


def load_engine_state(engine: Communicator, state: Mapping[str, Any]) -> None:
    """Put back what `engine_state` gave."""
    engine.draw = int(state["draw"])
    engine.residuals.load_state_dict(_arrays(state["memory"]))


def reshard(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state that every rank starts from when the number of ranks changes.

    Parameters
    ----------
    states : sequence of dict
        `DdpHook.state_dict`, or `collcomp.torch.state_dict`, of every old rank, by rank.

    Returns
    -------
    dict
        Each rank gets the mean of what was left out; see `collcomp.feedback.reshard`.
    """
    memory = feedback.reshard([_arrays(state["memory"]) for state in states])
    return {**states[0], "memory": _convert(memory, np.ndarray, torch.tensor)}


def _arrays(memory: Any) -> Any:
    return _convert(memory, torch.Tensor, lambda tensor: tensor.cpu().numpy())


def _convert(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, Mapping):
        return {name: _convert(item, kind, function) for name, item in value.items()}
    return [_convert(item, kind, function) for item in value] if isinstance(value, list) else value
