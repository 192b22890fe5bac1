"""What is remembered of a tensor from call to call: what a codec left out of it, to be added the next time.

Keyed by the tensor's own name, not by a bucket or a position, so that it outlives changes of both: tensors that are
summed as one message have their residuals side by side, each under its own name.

Source: Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al., "Error feedback fixes
SignSGD", ICML 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.devices import host_copy, is_capturing, like, on_device, zeros

__all__ = ["Memory", "Residuals", "reshard"]


class Memory:
    """What is remembered of one tensor.

    Attributes
    ----------
    residual : ndarray, shape (count,), or None
        None for a codec that remembers something else only.
    states : dict
        What a stateful codec remembers besides, by (start, stop) of the part of the tensor that it encoded at once.
    """

    def __init__(self, residual: np.ndarray | None) -> None:
        self.residual = residual
        self.states: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def part(self, part: slice) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """Residual and state of a part of the tensor, both to be updated in place."""
        residual = None if self.residual is None else self.residual[part]
        return residual, self.states.setdefault((part.start, part.stop), {})


class Residuals:
    """The memory of each key; residuals are zero at first."""

    def __init__(self) -> None:
        self._by_key: dict[str, Memory] = {}
        # Of messages that consist of several tensors; their residuals are views of these.
        self._by_keys: dict[tuple[str, ...], Memory] = {}
        self._learning_rate: float | None = None

    def get(self, key: str, count: int, dtype: np.dtype, codec: Codec, beside: Any = None) -> Memory:
        """The memory of tensor `key`, which has `count` elements of `dtype` and is encoded by `codec`.

        It lies where the array `beside` does, on the host or on a device, and moves there if it does not.

        Raises
        ------
        ValueError
            When `key` was used with another count or dtype before, or without feedback and now with it.
        """
        kept = codec.residual_dtype(dtype)
        memory = self._by_key.get(key)
        if memory is None:
            if is_capturing(beside):
                raise ValueError(f"key: {key!r} is new; make the same call once before it is captured in a graph")
            memory = self._by_key[key] = Memory(zeros(count, kept, beside) if codec.feedback else None)
        elif (memory.residual is not None) != codec.feedback:
            raise ValueError(f"key: {key!r} was used with{'out' * codec.feedback} feedback, now for {codec.spec!r}")
        elif memory.residual is not None and (memory.residual.size != count or memory.residual.dtype != kept):
            raise ValueError(
                f"key: {key!r} was used for {memory.residual.size} elements of {memory.residual.dtype}, "
                f"now for {count} of {kept}"
            )
        if memory.residual is not None and on_device(memory.residual) != on_device(beside):
            memory.residual = like(host_copy(memory.residual), beside)
        return memory

    def together(self, tensors: Sequence[tuple[str, int]], dtype: np.dtype, codec: Codec, beside: Any = None) -> Memory:
        """The memory of a message that consists of several tensors, one after another.

        Each tensor's residual remains its own, and follows it when tensors are put together in another way. What a
        codec remembers besides belongs to this way, and so do residuals of integers; they start anew then.

        Parameters
        ----------
        tensors : sequence of (str, int)
            Key and number of elements of each.
        """
        keys = tuple(key for key, _ in tensors)
        memory = self._by_keys.get(keys)
        if memory is not None and self._fits(memory, tensors, dtype, codec, beside):
            return memory
        singles = [self.get(key, count, dtype, codec, beside) for key, count in tensors]
        self._by_keys = {other: m for other, m in self._by_keys.items() if not set(other) & set(keys)}
        kept = codec.residual_dtype(dtype)
        memory = self._by_keys[keys] = _join(singles, kept.kind == "f")
        return memory

    def _fits(
        self, memory: Memory, tensors: Sequence[tuple[str, int]], dtype: np.dtype, codec: Codec, beside: Any
    ) -> bool:
        if memory.residual is None:
            return not codec.feedback
        if on_device(memory.residual) != on_device(beside):
            return False
        return memory.residual.dtype == codec.residual_dtype(dtype) and all(
            (found := self._by_key[key].residual) is not None and found.size == count for key, count in tensors
        )

    @property
    def learning_rate(self) -> float | None:
        """The step size that the next calls' gradients are multiplied by; None unless it was set.

        Residuals are gradients that wait to be applied. Where the step size changes, set it before each step: what
        waits is scaled by old / new, so that it is applied with the step size of its own time, and the parameters
        follow the path of uncompressed training exactly but for what still waits.

        Source: Zheng, Huang, and Kwok, "Communication-efficient distributed blockwise momentum SGD with
        error-feedback", NeurIPS 2019.
        """
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | None) -> None:
        if value is not None and not value > 0:
            raise ValueError(f"learning_rate: expected a number above 0, got {value!r}")
        old, self._learning_rate = self._learning_rate, value
        if old is None or value is None or old == value:
            return
        for memory in self._by_key.values():
            if memory.residual is not None and memory.residual.dtype.kind == "f":
                memory.residual *= memory.residual.dtype.type(old / value)
        for memory in (*self._by_key.values(), *self._by_keys.values()):
            for state in memory.states.values():
                if "scales" in state:  # of a residual of integers
                    state["scales"] *= state["scales"].dtype.type(old / value)

    def norm(self, key: str) -> float:
        """Euclidean norm of the residual of `key`; 0 when there is none."""
        memory = self._by_key.get(key)
        return 0.0 if memory is None or memory.residual is None else float(np.linalg.norm(memory.residual))

    def reset(self, key: str | None = None) -> None:
        """Forget `key`, or all."""
        if key is None:
            self._by_key.clear()
            self._by_keys.clear()
        else:
            self._by_key.pop(key, None)
            self._by_keys = {keys: memory for keys, memory in self._by_keys.items() if key not in keys}

    def state_dict(self) -> dict[str, Any]:
        """A copy of all, for a checkpoint: dicts of strings, numbers and arrays of the host."""
        return {
            "learning_rate": self._learning_rate,
            "residuals": {key: host_copy(m.residual) for key, m in self._by_key.items() if m.residual is not None},
            "states": {key: _states(memory) for key, memory in self._by_key.items()},
            "together": [{"keys": list(keys), "states": _states(memory)} for keys, memory in self._by_keys.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._learning_rate = state["learning_rate"]
        self._by_key, self._by_keys = {}, {}
        for key, parts in state["states"].items():
            residual = state["residuals"].get(key)
            self._by_key[key] = Memory(None if residual is None else np.array(residual))
            _put_states(self._by_key[key], parts)
        for group in state["together"]:
            memory = self._by_keys[tuple(group["keys"])] = _join([self._by_key[key] for key in group["keys"]], True)
            _put_states(memory, group["states"])


def _join(singles: Sequence[Memory], keep: bool) -> Memory:
    """One memory whose parts become the residuals of `singles`, with the values that they had where `keep` says so."""
    residuals = [single.residual for single in singles if single.residual is not None]
    if not residuals:
        return Memory(None)
    joined = np.concatenate(residuals)
    if not keep:
        joined[:] = 0
    edges = np.cumsum([0, *(residual.size for residual in residuals)]).tolist()
    for single, start, stop in zip(singles, edges, edges[1:], strict=False):
        single.residual = joined[start:stop]
    return Memory(joined)


def _states(memory: Memory) -> dict[str, dict[str, np.ndarray]]:
    return {
        f"{start}:{stop}": {name: host_copy(value) for name, value in state.items()}
        for (start, stop), state in memory.states.items()
        if state
    }


def _put_states(memory: Memory, parts: dict[str, dict[str, np.ndarray]]) -> None:
    for part, values in parts.items():
        start, _, stop = part.partition(":")
        memory.states[int(start), int(stop)] = {name: np.array(value) for name, value in values.items()}


def reshard(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state that every rank starts from when the number of ranks changes.

    Each new rank gets the mean over the old ranks' residuals: what the mean gradient still lacks stays the same. Of
    what codecs remember besides, only what all old ranks agree on is kept. Keys with a residual of integers are
    forgotten.

    Parameters
    ----------
    states : sequence of dict
        `Residuals.state_dict` of every old rank, by rank.
    """
    if not states:
        raise ValueError("states: expected the state of at least one rank, got none")
    keys = list(dict.fromkeys(key for state in states for key in state["states"]))
    residuals = {}
    for key in list(keys):
        found = [state["residuals"][key] for state in states if key in state["residuals"]]
        if found and found[0].dtype.kind != "f":
            keys.remove(key)
        elif found:
            total = np.zeros(found[0].size)
            for residual in found:
                total += residual
            residuals[key] = (total / len(states)).astype(found[0].dtype)
    return {
        "learning_rate": states[0]["learning_rate"],
        "residuals": residuals,
        "states": {key: _agreed([state["states"].get(key, {}) for state in states]) for key in keys},
        "together": [
            {"keys": group["keys"], "states": _agreed([_group_states(state, group["keys"]) for state in states])}
            for group in states[0]["together"]
            if set(group["keys"]) <= set(keys)
        ],
    }


def _group_states(state: dict[str, Any], keys: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    return next((group["states"] for group in state["together"] if group["keys"] == keys), {})


def _agreed(states: Sequence[dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    first, *others = states
    return {
        part: {name: value.copy() for name, value in values.items()}
        for part, values in first.items()
        if all(_equal(values, other.get(part, {})) for other in others)
    }


def _equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
