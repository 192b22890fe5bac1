"""The table that compares ways to average a GPT's gradients."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch

from ..arguments import NO_CODEC
from ..process_group import gloo
from ..ranks import MeasurementError, World, progress_bar, show
from ..table import Column, header, line, number
from . import results
from .data_parallel import BATCH, SHAPE, train
from .gpt import Gpt
from .results import Result
from .text import standard_library

__all__ = ["tabulate"]

_REHEARSED_STEPS = 4  # before the first run of a method: compilation, buffers


def tabulate(world: World, methods: Sequence[str], seeds: int, steps: int, path: str | None) -> list[Result]:
    """Train by each method from each seed and print a table.

    Parameters
    ----------
    world : World
    methods : sequence of str
        See `hooks.averaging`. ``"none"`` comes first: the others aim at its loss.
    seeds, steps : int
    path : str or None
        File of results, written after each run. Those that it has are not run again.
    """
    methods = sorted(methods, key=lambda method: method != NO_CODEC)
    columns = _columns(methods)
    text = standard_library()
    kept = _Kept(world, path, steps)
    rows: dict[str, list[Result]] = {}
    with gloo(world), progress_bar(world, len(methods) * seeds * steps, "train") as bar:
        for fact in _facts(world, seeds, steps):
            show(bar, fact)
        show(bar, header(columns))
        for method in methods:
            rows[method] = []
            rehearsed = False
            for seed in range(seeds):
                target = kept.target(seed)
                result = kept.find(method, seed, target)
                if result is None:
                    if not rehearsed:
                        train(world, text, method, seed, _REHEARSED_STEPS)
                        rehearsed = True
                    result = train(world, text, method, seed, steps, target, bar)
                    kept.add(result)
                else:
                    bar.update(steps)
                rows[method].append(result)
            show(bar, line(columns, (rows[method], rows.get(NO_CODEC))))
    return [result for row in rows.values() for result in row]


class _Kept:
    """Results so far, those of earlier starts included; the file is rank 0's."""

    def __init__(self, world: World, path: str | None, steps: int) -> None:
        self._path = path if world.rank == 0 else None
        settings = {"model": Gpt(SHAPE, 0).name, "ranks": world.size, "link": world.link, "steps": steps}
        found: list[Result] | MeasurementError = []
        if self._path:
            try:
                found = results.load(self._path, settings)
            except MeasurementError as error:
                found = error
        found = world.comm.bcast(found)
        if isinstance(found, MeasurementError):
            raise found
        self._results = {(result.codec, result.seed): result for result in found}

    def target(self, seed: int) -> float | None:
        """The loss that a run has to reach, where the run without compression has told it."""
        without = self._results.get((NO_CODEC, seed))
        return None if without is None else without.loss

    def find(self, method: str, seed: int, target: float | None) -> Result | None:
        """The result of this run, if it was finished and had the same target."""
        result = self._results.get((method, seed))
        return result if result is not None and result.target_loss == target else None

    def add(self, result: Result) -> None:
        self._results[result.codec, result.seed] = result
        if self._path:
            results.save(self._path, list(self._results.values()))


def _facts(world: World, seeds: int, steps: int) -> list[str]:
    model = Gpt(SHAPE, 0)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return [
        f"# {model.name}, {millions:.1f} million parameters, on the source of Python {platform.python_version()}'s "
        "standard library",
        f"# {steps} steps of {world.size} x {BATCH} x {SHAPE.context} characters, mean of seeds: {seeds}",
        f"# PyTorch {torch.__version__}, gloo, {world.mpi_version}, {world.size} ranks, link {world.link}",
        "# loss: on held-out text, of averaged weights; s to loss: seconds of training until that of none's end",
    ]


def _columns(methods: Sequence[str]) -> list[Column]:
    def values(results: Sequence[Result], attribute: str) -> list[float] | None:
        found = [getattr(result, attribute) for result in results]
        return None if None in found else found

    def mean(attribute: str, scale: float, digits: int) -> Callable[[Any], str]:
        def text(row: tuple[list[Result], list[Result] | None]) -> str:
            found = values(row[0], attribute)
            return number(None if found is None else scale * fmean(found), digits)

        return text

    def spread(row: tuple[list[Result], list[Result] | None]) -> str:
        losses = [result.loss for result in row[0]]
        return number(max(losses) - min(losses) if len(losses) > 1 else None, 4)

    def against(attribute: str, judge: Callable[[float, float], float], digits: int) -> Callable[[Any], str]:
        def text(row: tuple[list[Result], list[Result] | None]) -> str:
            mine = values(row[0], attribute)
            none = values(row[1], attribute) if row[1] else None
            return number(judge(fmean(mine), fmean(none)) if mine and none else None, digits)

        return text

    return [
        Column("codec", lambda row: row[0][0].codec, max(map(len, methods)), left=True),
        Column("loss", mean("loss", 1, 4), 7),
        Column("spread", spread),
        Column("% more", against("loss", lambda mine, none: 100 * (mine / none - 1), 2)),
        Column("bytes/step", mean("wire_bytes", 1, 0)),
        Column("step ms", mean("step_seconds", 1e3, 1), 8),
        Column("s to loss", mean("seconds_to_target", 1, 1)),
        Column("faster", against("seconds_to_target", lambda mine, none: none / mine, 2)),
    ]
