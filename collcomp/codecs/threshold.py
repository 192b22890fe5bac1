"""Sparse frames of about a share of the elements, selected in one pass by a threshold that is estimated."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from collcomp.codecs import selection
from collcomp.codecs.base import working_dtype
from collcomp.codecs.checks import check_choice, check_flag, check_integer, check_ratio
from collcomp.codecs.fits import MODELS, fitted_threshold, most_stages
from collcomp.codecs.sparse import SparseCodec
from collcomp.devices import counters, empty, host_copy, on_device, zeros
from collcomp.frame import Frame
from collcomp.kernels import cpu, cuda, kernels_for

__all__ = ["Threshold"]

#: Quantiles are those of this share of the elements, at least so many; fits see a number that does not grow with the
#: message, but enough for so many to be above the threshold.
_SAMPLED, _SMALLEST_SAMPLE = 0.01, 1 << 13
_FITTED, _FITTED_ABOVE = 1 << 16, 64
#: A frame never holds more than this many times the share that is aimed at.
_MOST = 1.3
#: Corrections of a sampled quantile: how many, by how much, and from what miss on.
_ROUNDS = 10
_RAISE, _LOWER = 1.3, 0.7
#: Fits: calls between two looks at the number of stages, and what it is to achieve.
_ADAPT_EVERY = 5
_GOOD = (0.8, 1.2)


@dataclass(frozen=True)
class Threshold(SparseCodec):
    """The elements from a threshold on that about a share of them reaches; the others become zero.

    Cheaper than `topk`, whose number of elements is exact. A frame holds at most 1.3 times the share that is aimed at
    (the largest elements then); zeros are never sent. Every selected element arrives bit by bit; NaN and infinities
    are above any threshold. The error of the others is their magnitude, below the threshold.

    Parameters
    ----------
    ratio : float
        Share of the elements that is aimed at, 0 < `ratio` <= 1.
    method : {"sidco", "dgc", "held"}
        How the threshold is found. ``"sidco"``: a distribution is fitted to a sample of the elements (65536, or
        64 / `ratio`), in several stages; their number is remembered by key and adapted every 5 calls. ``"dgc"``: a
        quantile of a sample of 1%, multiplied by 1.3 or 0.7 up to 10 times until the number of elements is within 0.7
        and 1.3 times what is aimed at. ``"held"``: that of an exact selection, which is remembered by key for some
        calls; meanwhile the number of elements drifts.
    model : {"exponential", "pareto", "gamma"}
        What ``"sidco"`` fits: exponential distributions (SIDCo-E), generalised Pareto distributions (SIDCo-P), or a
        gamma distribution and then generalised Pareto distributions (SIDCo-GP).
    every : int
        Calls from one exact selection of ``"held"`` to the next.
    feedback : bool
        Carry what was not selected into the next call with the same key; without it, it is lost.

    Notes
    -----
    Collectives without a key (allgather, bcast) estimate afresh. Two rules differ from the published ones. SIDCo takes
    a stage away after too many elements and adds one after too few, which is the wrong way round for heavy tails: here
    both directions are tried, and what came nearest is kept. And the factors of ``"dgc"`` may miss on either side in
    turns: once a threshold was too low and another too high, the next one is their geometric mean.

    Examples
    --------
    >>> Threshold(ratio=0.001, method="held", feedback=True).spec
    'threshold:ratio=0.001,method=held,feedback'

    Source: Lin et al., "Deep gradient compression", ICLR 2018; Abdelmoniem et al., "An efficient statistical-based
    gradient compression technique for distributed training systems", MLSys 2021; Gupta et al., "Training recommender
    systems at scale: communication-efficient model and data parallelism", KDD 2021.
    """

    codec_id: ClassVar[str] = "threshold"
    number: ClassVar[int] = 18
    summary: ClassVar[str] = "about a share of the elements, those above an estimated threshold, with their indices"
    stateful: ClassVar[bool] = True
    on_devices: ClassVar[bool] = True

    ratio: float = 0.01
    method: str = "sidco"
    model: str = "exponential"
    every: int = 1000
    feedback: bool = False

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio)
        check_choice("method", self.method, ("sidco", "dgc", "held"))
        check_choice("model", self.model, MODELS)
        check_integer("every", self.every, 1)
        check_flag("feedback", self.feedback)
        for name, method in (("model", "sidco"), ("every", "held")):
            value = getattr(self, name)
            if self.method != method and value != getattr(Threshold, name):
                raise ValueError(f"{name}: {value!r} is for method {method!r}, not {self.method!r}")

    @property
    def needs_key(self) -> bool:
        """Whether anything is remembered; ``"dgc"`` has only its residual."""
        return self.feedback or self.method != "dgc"

    def aimed_at(self, count: int) -> int:
        """Number of elements that is aimed at for `count`."""
        return selection.share(self.ratio, count)

    def most(self, count: int) -> int:
        """Number of elements that a frame of `count` holds at most."""
        return min(count, math.floor(_MOST * self.aimed_at(count)))

    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Values, and indices of any layout, of as many elements as a frame may hold."""
        return selection.max_nbytes(self.most(count), dtype)

    def selection(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        return selection.read(frame, working_dtype(frame.dtype), 0, self.most(frame.count))

    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        return self._write(*self._select(src, None, {}), src, payload)

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray | None, payload: np.ndarray, stream: int, state: dict[str, Any]
    ) -> tuple[int, int]:
        if residual is None:
            return self._write(*self._select(src, None, state), src, payload)
        indices, values = self._select(residual, src, state)
        kernels_for(residual, "sparse").clear(indices, residual)
        return self._write(indices, values, src, payload)

    def _write(self, indices: np.ndarray, values: np.ndarray, src: np.ndarray, payload: np.ndarray) -> tuple[int, int]:
        selection.values_in(payload, values.size, src.dtype)[:] = values
        return selection.finish(payload, indices, src.itemsize, src.size)

    # ------------------------------------------------------------------ the three methods

    def _select(
        self, x: np.ndarray, addend: np.ndarray | None, state: MutableMapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices and values of what is selected of ``x + addend``, which `x` becomes."""
        selection.check_count(x.size)
        if not x.size:
            return empty(0, np.dtype(np.uint32), x), empty(0, x.dtype, x)
        if state.get("digest") != self.digest:  # what was found for another share, method or model says nothing here
            state.clear()
            state["digest"] = np.int64(self.digest)
        if self.method == "held":
            return self._select_held(x, addend, state)
        collector = _collector(x, addend, self.most(x.size))
        if self.method == "dgc":
            self._select_by_quantile(collector)
        else:
            self._select_by_fit(collector, state)
        return collector.selected()

    def _select_held(
        self, x: np.ndarray, addend: np.ndarray | None, state: MutableMapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        left = int(state.get("calls_left", 0))
        if left:
            state["calls_left"] = np.int64(left - 1)
            collector = _collector(x, addend, self.most(x.size))
            collector.collect(float(state["threshold"]))
            return collector.selected()
        values = empty(self.aimed_at(x.size), x.dtype, x)
        indices = selection.largest(x, addend, values.size, values)
        smallest = np.abs(host_copy(values)).view(f"i{x.itemsize}").min()  # of the bits, where NaN is the largest
        state["threshold"] = np.float64(smallest.view(x.dtype))
        state["calls_left"] = np.int64(self.every - 1)
        return indices, values

    def _select_by_quantile(self, collector: _Collector) -> None:
        target = self.aimed_at(collector.count)
        threshold = collector.sampled_quantile(target / collector.count)
        found = collector.collect(threshold)
        low, high = 0.0, math.inf
        for _ in range(_ROUNDS):
            if _LOWER * target <= found <= _RAISE * target or not 0 < threshold < math.inf:
                break
            if found > target:
                low = threshold
                threshold = threshold * _RAISE if high == math.inf else math.sqrt(low * high)
            else:
                high = threshold
                threshold = threshold * _LOWER if low == 0 else math.sqrt(low * high)
            found = collector.collect(threshold)

    def _select_by_fit(self, collector: _Collector, state: MutableMapping[str, Any]) -> None:
        target = self.aimed_at(collector.count)
        magnitudes, share, unit = collector.sampled_magnitudes(target / collector.count)
        if share >= 1 or magnitudes.size < 2:
            collector.collect(0.0)
            return
        if "stages" not in state:
            most = most_stages(share)
            state["stages"] = np.int64(_fewest_stages(magnitudes, share, most, self.model))
            state["achieved"] = np.full(most + 1, np.nan)
            state["sum"], state["calls"] = np.float64(0), np.int64(0)
        threshold = fitted_threshold(magnitudes, share, int(state["stages"]), self.model)
        found = collector.collect(threshold * unit)
        state["sum"] = state["sum"] + found / target
        state["calls"] = state["calls"] + 1
        if state["calls"] == _ADAPT_EVERY:
            _adapt(state)


class _Collector:
    """Collects elements by thresholds, one after another; what the last one found is selected."""

    def __init__(self, x: np.ndarray, addend: np.ndarray | None, most: int) -> None:
        self.count = x.size
        self._x, self._addend, self._most = x, addend, most
        self._found = 0
        self._make_room()

    def _make_room(self) -> None:
        self._indices, self._values = cpu.load("sparse").room_for(self._most, self._x.dtype)

    def _sample(self, size: float) -> np.ndarray:
        return cpu.load("sparse").sampled(self._x, self._addend, int(size))

    def _collect(self, threshold: int) -> int:
        """Number of elements above a magnitude's bits."""
        return cpu.load("sparse").collect(self._x, self._addend, threshold, self._indices, self._values)

    def _collected(self) -> tuple[np.ndarray, np.ndarray]:
        return self._indices[: self._found], self._values[: self._found]

    def sampled_quantile(self, share: float) -> float:
        """The threshold that `share` of a sample reaches."""
        sample = self._sample(max(_SMALLEST_SAMPLE, _SAMPLED * self.count))
        bits, _ = cpu.load("sparse").kth_largest(sample, max(1, round(share * sample.size)))
        return float(np.array(bits, f"i{sample.itemsize}").view(sample.dtype))

    def sampled_magnitudes(self, share: float) -> tuple[np.ndarray, float, float]:
        """Finite magnitudes of a sample without its zeros, what `share` is of them, and the unit that they are in."""
        sample = self._sample(max(_FITTED, _FITTED_ABOVE / share))
        np.abs(sample, out=sample)
        kept = sample[(sample > 0) & (sample < math.inf)].astype(np.float64)
        unit = float(kept.max(initial=0)) or 1.0
        kept /= unit
        return kept, share * sample.size / max(kept.size, 1), unit

    def collect(self, threshold: float) -> int:
        """Number of elements of a magnitude of at least `threshold` (and above 0)."""
        with np.errstate(over="ignore"):
            bits = np.float64(threshold).astype(self._x.dtype).view(f"i{self._x.itemsize}")
        self._found = self._collect(max(int(bits) - 1, 0))
        self._addend = None  # it is added now
        return self._found

    def selected(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices and values of what was found; the largest, where that is too much."""
        if self._found > self._most:
            values = empty(self._most, self._x.dtype, self._x)
            return selection.largest(self._x, None, self._most, values), values
        return self._collected()


class _DeviceCollector(_Collector):
    """On a device, elements are only counted until a threshold was found; what is sampled comes to the host."""

    def _make_room(self) -> None:
        self._kernels, self._threshold = cuda.load("sparse"), 0
        self._scratch = zeros(self._kernels.scratch_size(self.count), np.dtype(np.int64), self._x)

    def _sample(self, size: float) -> np.ndarray:
        sample = empty(self._kernels.sample_size(self.count, int(size)), self._x.dtype, self._x)
        self._kernels.sampled(self._x, self._addend, sample)
        return host_copy(sample)

    def _collect(self, threshold: int) -> int:
        self._threshold = threshold
        self._kernels.count_above(self._x, self._addend, threshold, self._scratch, counters())
        return selection.counted(self._x)

    def _collected(self) -> tuple[np.ndarray, np.ndarray]:
        indices = empty(self._found, np.dtype(np.uint32), self._x)
        values = empty(self._found, self._x.dtype, self._x)
        if self._found:
            self._kernels.collect(self._x, self._threshold, indices, values, self._scratch)
        return indices, values


def _collector(x: np.ndarray, addend: np.ndarray | None, most: int) -> _Collector:
    return (_DeviceCollector if on_device(x) else _Collector)(x, addend, most)


# ---------------------------------------------------------------------- the number of stages


def _fewest_stages(magnitudes: np.ndarray, share: float, most: int, model: str) -> int:
    """The fewest stages that achieve the share well in the sample itself; where none does, those that come nearest."""
    misses = []
    for stages in range(1, most + 1):
        threshold = fitted_threshold(magnitudes, share, stages, model)
        achieved = np.count_nonzero(magnitudes >= threshold) / (share * magnitudes.size)
        if _GOOD[0] <= achieved <= _GOOD[1]:
            return stages
        misses.append(abs(achieved - 1))
    return 1 + int(np.argmin(misses))


def _adapt(state: MutableMapping[str, Any]) -> None:
    """Look at what the number of stages achieved of late, and try its neighbours where that is not good.

    ``state["achieved"]`` is what each number of stages achieved when it was tried, NaN where it was not.
    """
    stages, achieved = int(state["stages"]), np.array(state["achieved"])
    mean = float(state["sum"]) / _ADAPT_EVERY
    if _GOOD[0] <= mean <= _GOOD[1]:
        achieved[:] = np.nan  # what others achieved is too old when it is needed next
    else:
        achieved[stages] = mean
        best = int(np.nanargmin(np.abs(achieved - 1)))
        untried = [s for s in (best + 1, best - 1) if 1 <= s < achieved.size and np.isnan(achieved[s])]
        state["stages"] = np.int64(untried[0] if untried else best)
    state["achieved"] = achieved
    state["sum"], state["calls"] = np.float64(0), np.int64(0)
