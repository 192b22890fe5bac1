"""Error feedback: what a codec left out of a tensor is added to it the next time.

Residuals are keyed by the tensor's own name, not by a bucket or a position, so that they outlive changes of both.

Source: Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al., "Error feedback fixes
SignSGD", ICML 2019.
"""

from __future__ import annotations

import numpy as np

from collcomp.codecs.base import working_dtype

__all__ = ["Residuals"]


class Residuals:
    """The residual of each key, in working dtype, zero at first."""

    def __init__(self) -> None:
        self._by_key: dict[str, np.ndarray] = {}

    def get(self, key: str, count: int, dtype: np.dtype) -> np.ndarray:
        """The residual of tensor `key`, shape (count,), to be updated in place.

        Raises
        ------
        ValueError
            When `key` was used with another count or dtype before.
        """
        dtype = working_dtype(dtype)
        residual = self._by_key.get(key)
        if residual is None:
            residual = self._by_key[key] = np.zeros(count, dtype)
        elif residual.size != count or residual.dtype != dtype:
            raise ValueError(
                f"key: {key!r} was used for {residual.size} elements of {residual.dtype}, now for {count} of {dtype}"
            )
        return residual

    def norm(self, key: str) -> float:
        """Euclidean norm of the residual of `key`; 0 when there is none."""
        residual = self._by_key.get(key)
        return 0.0 if residual is None else float(np.linalg.norm(residual))

    def reset(self, key: str | None = None) -> None:
        """Forget the residual of `key`, or all."""
        if key is None:
            self._by_key.clear()
        else:
            self._by_key.pop(key, None)

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of all residuals by key, for a checkpoint."""
        return {key: residual.copy() for key, residual in self._by_key.items()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Put back what `state_dict` gave."""
        self._by_key = {key: np.array(residual) for key, residual in state.items()}
