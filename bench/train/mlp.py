"""A classifier in NumPy: enough to see what compressed gradients do to learning."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

__all__ = ["Mlp"]


class Mlp:
    """Multilayer perceptron: ReLU between layers, softmax cross-entropy at the end, float32.

    Parameters
    ----------
    widths : tuple of int
        From the inputs to the classes.
    seed : int
        Of the initial weights (He et al., ICCV 2015).

    Attributes
    ----------
    parameters : dict of str to ndarray
        ``weight0`` of shape (inputs, outputs), ``bias0``, ...
    """

    def __init__(self, widths: tuple[int, ...], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.widths = widths
        self.parameters: dict[str, np.ndarray] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            scale = np.float32(np.sqrt(2 / fan_in))
            self.parameters[f"weight{i}"] = rng.standard_normal((fan_in, fan_out), np.float32) * scale
            self.parameters[f"bias{i}"] = np.zeros(fan_out, np.float32)

    @property
    def name(self) -> str:
        """Such as ``mlp-64-512-10``."""
        return "-".join(map(str, ("mlp", *self.widths)))

    def gradients(self, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Gradients of the mean loss over a batch, by parameter; `x` of shape (batch, inputs)."""
        activations = self._forward(x)
        delta = _softmax(activations[-1])
        delta[np.arange(labels.size), labels] -= 1
        delta /= labels.size
        gradients = {}
        for i in reversed(range(len(self.widths) - 1)):
            gradients[f"weight{i}"] = activations[i].T @ delta
            gradients[f"bias{i}"] = delta.sum(axis=0)
            if i:
                delta = (delta @ self.parameters[f"weight{i}"].T) * (activations[i] > 0)
        return gradients

    def evaluate(self, x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Mean loss, and share of correct answers."""
        scores = self._forward(x)[-1]
        right = _softmax(scores)[np.arange(labels.size), labels]
        loss = -np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean()
        return float(loss), float((scores.argmax(axis=1) == labels).mean())

    def _forward(self, x: np.ndarray) -> list[np.ndarray]:
        """The inputs of each layer, and the scores."""
        activations = [x]
        last = len(self.widths) - 2
        for i in range(last + 1):
            scores = activations[-1] @ self.parameters[f"weight{i}"] + self.parameters[f"bias{i}"]
            activations.append(scores if i == last else np.maximum(scores, 0))
        return activations


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
