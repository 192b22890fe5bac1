"""A classifier of handwritten digits, trained by data-parallel ranks over MPI."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from collcomp.codecs import Codec

from ..arguments import NO_CODEC
from ..ranks import World, progress_bar, show
from ..table import Column, header, line, number
from .mlp import Mlp
from .replicas import check_replicas

__all__ = ["Data", "Result", "digits", "tabulate", "train"]

_WIDTHS = (64, 512, 512, 10)
_BATCH = 32
_LEARNING_RATE = np.float32(0.05)
_MOMENTUM = np.float32(0.9)
# Smaller tensors (the biases) wait for latency, not for bandwidth: they stay native.
_MIN_NBYTES = 16 << 10
_TEST_SHARE = 0.25


class Data(NamedTuple):
    """Inputs of shape (samples, 64) and labels, to train and to test with."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass(frozen=True)
class Result:
    """One training run.

    Attributes
    ----------
    model, codec : str
    ranks : int
    link : str
    seed : int
    loss, accuracy : float
        On the test samples, at the end.
    step_seconds : float
        Median over steps of the slowest rank.
    wire_bytes : float
        That the busiest rank sent per step: counted by its interface on a shaped link; else what collcomp recorded,
        and for native calls what a ring would send.
    """

    model: str
    codec: str
    ranks: int
    link: str
    seed: int
    loss: float
    accuracy: float
    step_seconds: float
    wire_bytes: float


def digits(seed: int) -> Data:
    """scikit-learn's digits, shuffled and split; pixels from -1 to 1."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order].astype(np.float32) / 8 - 1, y[order]
    tested = int(len(y) * _TEST_SHARE)
    return Data(x[tested:], y[tested:], x[:tested], y[:tested])


def train(world: World, comm: Any, codec: Codec | None, seed: int, epochs: int, bar: Any) -> Result:
    """Train once.

    All ranks begin with the same weights and average their gradients after each batch of their own part of the data.

    Parameters
    ----------
    world : World
    comm : collcomp.mpi.Comm
    codec : Codec or None
    seed : int
        Of the weights, the split into parts, and the order of the samples.
    epochs : int
    bar : tqdm
        Of ``epochs``.
    """
    from mpi4py import MPI

    data = digits(seed)
    model = Mlp(_WIDTHS, seed)
    x, y = data.train_x[world.rank :: world.size], data.train_y[world.rank :: world.size]
    steps = len(data.train_y) // world.size // _BATCH  # equal on all ranks
    rng = np.random.default_rng((seed, world.rank))
    velocity = {name: np.zeros_like(value) for name, value in model.parameters.items()}
    residuals = f"seed{seed}"  # each run begins without any
    seconds = []
    ledger = _Ledger(world, comm)
    for _ in range(epochs):
        order = rng.permutation(len(y))[: steps * _BATCH].reshape(steps, _BATCH)
        for batch in order:
            started = time.perf_counter()
            gradients = model.gradients(x[batch], y[batch])
            _average(comm, gradients, codec, residuals)
            for name, value in model.parameters.items():
                velocity[name] *= _MOMENTUM
                velocity[name] += gradients[name]
                value -= _LEARNING_RATE * velocity[name]
            seconds.append(time.perf_counter() - started)
        bar.update()
    wire_bytes = ledger.sent() / len(seconds)
    slowest = np.array(seconds)
    world.comm.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
    check_replicas(world, model.parameters.values())
    loss, accuracy = model.evaluate(data.test_x, data.test_y)
    return Result(
        model=model.name,
        codec=NO_CODEC if codec is None else codec.spec,
        ranks=world.size,
        link=world.link,
        seed=seed,
        loss=loss,
        accuracy=accuracy,
        step_seconds=float(np.median(slowest)),
        wire_bytes=wire_bytes,
    )


def _average(comm: Any, gradients: dict[str, np.ndarray], codec: Codec | None, prefix: str) -> None:
    from mpi4py import MPI

    for name, gradient in gradients.items():
        if codec is None or gradient.nbytes < _MIN_NBYTES:
            comm.Allreduce(MPI.IN_PLACE, gradient, average=True)
        else:
            key = f"{prefix}/{codec.spec}/{name}" if codec.needs_key else None
            comm.Allreduce(MPI.IN_PLACE, gradient, codec=codec, key=key, average=True)


class _Ledger:
    """Bytes that the busiest rank has sent since this was made."""

    def __init__(self, world: World, comm: Any) -> None:
        self._world = world
        self._comm = comm
        self._before = self._now()

    def sent(self) -> float:
        return self._world.largest(self._now() - self._before)

    def _now(self) -> float:
        counted = self._world.sent_bytes()
        if counted is not None:
            return counted
        ring = 2 * (self._world.size - 1) / self._world.size
        totals = self._comm.records.totals()
        return sum(
            ring * total.nbytes if algorithm == "native" else total.wire_nbytes
            for (_, algorithm, _), total in totals.items()
        )


def tabulate(world: World, codecs: Sequence[Codec | None], seeds: int, epochs: int) -> list[Result]:
    """Train with each codec and each seed and print a table."""
    from collcomp.mpi import Comm

    comm = Comm(world.comm)
    columns = _columns(codecs)
    means: dict[str, float] = {}
    results = []
    with progress_bar(world, len(codecs) * seeds * epochs, "train") as bar:
        show(bar, f"# {Mlp(_WIDTHS, 0).name} on scikit-learn's digits, {epochs} epochs, mean of {seeds} seeds")
        show(bar, f"# {world.mpi_version}, {world.size} ranks, {_BATCH} samples each in a step, link {world.link}")
        show(bar, header(columns))
        for codec in codecs:
            mine = [train(world, comm, codec, seed, epochs, bar) for seed in range(seeds)]
            results += mine
            means[mine[0].codec] = fmean(result.step_seconds for result in mine)
            show(bar, line(columns, (mine, means.get(NO_CODEC))))
    return results


def _columns(codecs: Sequence[Codec | None]) -> list[Column]:
    def mean(attribute: str, scale: float, digits: int) -> Callable[[Any], str]:
        return lambda row: number(scale * fmean(getattr(result, attribute) for result in row[0]), digits)

    def speedup(row: tuple[list[Result], float | None]) -> str:
        mine, native = row
        return "-" if native is None else f"{native / fmean(result.step_seconds for result in mine):.2f}"

    widest = max(len(NO_CODEC if codec is None else codec.spec) for codec in codecs)
    return [
        Column("codec", lambda row: row[0][0].codec, widest, left=True),
        Column("accuracy %", mean("accuracy", 100, 2)),
        Column("loss", mean("loss", 1, 4), 7),
        Column("bytes/step", mean("wire_bytes", 1, 0)),
        Column("step ms", mean("step_seconds", 1e3, 1), 8),
        Column("speed-up", speedup),
    ]
