"""Thresholds from distributions that are fitted to magnitudes.

Source: Abdelmoniem, Elzanaty, Alouini, Canini, "An efficient statistical-based gradient compression technique for
distributed training systems" (SIDCo), MLSys 2021.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["MODELS", "fitted_threshold", "most_stages"]

MODELS = ("exponential", "pareto", "gamma")

#: Share that every stage but the last ones aims at first.
_FIRST_SHARE = 0.25


def most_stages(share: float) -> int:
    """Number of stages that fits of this `share` may have."""
    return max(1, math.ceil(math.log2(1 / share)))


def fitted_threshold(magnitudes: np.ndarray, share: float, stages: int, model: str) -> float:
    """The threshold that `share` of the distribution of `magnitudes` lies above.

    The first stage fits all magnitudes and aims at a quarter; each further one fits the excesses over the threshold
    before, and all of these aim at the same share of what was left.

    Parameters
    ----------
    magnitudes : ndarray of float64
        Positive and finite.
    share : float
        0 < `share` < 1.
    stages : int
        One stage is a fit to all magnitudes, for `share` at once.
    model : {"exponential", "pareto", "gamma"}
        What is fitted: an exponential distribution; a generalised Pareto distribution, by moments; a gamma
        distribution in the first stage and a generalised Pareto distribution in the others.
    """
    if share >= _FIRST_SHARE:
        stages = 1
    first = share if stages == 1 else _FIRST_SHARE
    quantile = {"exponential": _exponential, "pareto": _pareto, "gamma": _gamma}
    threshold = quantile[model](magnitudes, first)
    for _ in range(stages - 1):
        magnitudes = magnitudes[magnitudes > threshold]
        if magnitudes.size < 2:
            break
        start = float(magnitudes.min())
        excess = _exponential if model == "exponential" else _pareto
        threshold = start + excess(magnitudes - start, (share / first) ** (1 / (stages - 1)))
    return threshold


def _exponential(x: np.ndarray, share: float) -> float:
    return -float(x.mean()) * math.log(share)


def _pareto(x: np.ndarray, share: float) -> float:
    mean, variance = float(x.mean()), float(x.var())
    if not variance > 0:
        return mean
    square = mean * mean / variance
    shape, scale = 0.5 * (square - 1), 0.5 * mean * (square + 1)
    if abs(shape) < 1e-9:
        return -scale * math.log(share)
    return -scale * math.expm1(shape * math.log(share)) / shape


def _gamma(x: np.ndarray, share: float) -> float:
    mean = float(x.mean())
    s = math.log(mean) - float(np.log(x).mean())
    if not s > 0:
        return mean
    shape = (3 - s + math.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    return mean / shape * _gamma_quantile(shape, share)


def _gamma_quantile(shape: float, share: float) -> float:
    """The value that a gamma distribution of scale 1 exceeds with probability `share`, by bisection."""
    low, high = 0.0, shape + 1.0
    while _gamma_above(shape, high) > share:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        if _gamma_above(shape, middle) > share:
            low = middle
        else:
            high = middle
    return high


def _gamma_above(shape: float, x: float) -> float:
    """The regularised upper incomplete gamma function, by its series below `shape` + 1, else its continued fraction."""
    if x <= 0:
        return 1.0
    front = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1 / shape
        n = shape
        while term > 1e-15 * total:
            n += 1
            term *= x / n
            total += term
        return 1 - front * total
    # Lentz's method.
    b = x + 1 - shape
    c, d = math.inf, 1 / b
    fraction = d
    for i in range(1, 1000):
        a = -i * (i - shape)
        b += 2
        d = 1 / (a * d + b)
        c = b + a / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction
