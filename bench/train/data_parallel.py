"""Training a GPT by data-parallel ranks."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..arguments import NO_CODEC
from ..ranks import World
from . import hooks
from .gpt import Gpt, Shape, cross_entropy
from .meter import Meter
from .replicas import check_replicas
from .results import Point, Result, seconds_to
from .text import ALPHABET, Text

__all__ = ["BATCH", "SHAPE", "train"]

# 10 MB of gradients, which take 0.6 s at 200 Mbit/s, to 0.1 s of computing on a core for two ranks.
SHAPE = Shape(vocabulary=len(ALPHABET) + 1, context=32, layers=3, heads=4, width=256)
BATCH = 3
"""Sequences of a rank in a step."""
_LEARNING_RATE = 1e-3  # after a warm-up constant, so that a run may go on
_WARMUP_STEPS = 20
_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.01
_LARGEST_NORM = 1.0
# Validated are averages of the weights, over some 20 steps: with a constant rate the weights themselves jitter.
_AVERAGING = 0.95
_VALIDATION_SEQUENCES = 192
_VALIDATION_STEPS = 10
_LONGEST = 1.5
# All in one bucket: PyTorch's PowerSGD deadlocks over gloo with several, and so the hook is all that differs.
_BUCKET_MIB = 1024


def train(
    world: World, text: Text, method: str, seed: int, steps: int, target: float | None = None, bar: Any = None
) -> Result:
    """Train once. Collective.

    Parameters
    ----------
    world : World
        Whose ranks are those of PyTorch's default group.
    text : Text
    method : str
        See `hooks.averaging`.
    seed : int
        Of the initial weights and the batches.
    steps : int
    target : float, optional
        Validation loss to reach, with half as many steps again if need be; that of these `steps` for ``"none"``.
    bar : tqdm, optional
        Of `steps`.
    """
    torch.set_num_threads(1)  # the ranks share the cores
    model = Gpt(SHAPE, seed)
    parallel = DistributedDataParallel(model, bucket_cap_mb=_BUCKET_MIB, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), _LEARNING_RATE, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True
    )
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP_STEPS))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGING))
    batches = np.random.default_rng((seed, world.rank))

    def step() -> None:
        starts = batches.integers(0, text.train.size - SHAPE.context, BATCH)
        x, y = _sequences(text.train, starts)
        optimizer.zero_grad()
        cross_entropy(parallel(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_NORM)
        optimizer.step()
        warmup.step()
        averaged.update_parameters(model)

    meter = Meter(world)
    curve = [_point(world, averaged, meter, text, 0)]

    def go_on(steps: int) -> None:
        meter.run(step, steps)
        curve.append(_point(world, averaged, meter, text, curve[-1].step + steps))

    with hooks.averaging(parallel, method):
        while curve[-1].step < steps:
            stretch = min(_VALIDATION_STEPS, steps - curve[-1].step)
            go_on(stretch)
            if bar is not None:
                bar.update(stretch)
        last = curve[-1]
        if method == NO_CODEC:
            target = last.loss
        while target is not None and seconds_to(curve, target) is None and curve[-1].step < _LONGEST * steps:
            go_on(_VALIDATION_STEPS)
    check_replicas(world, (parameter.detach().numpy() for parameter in model.parameters()))
    return Result(
        model=model.name,
        codec=method,
        ranks=world.size,
        link=world.link,
        seed=seed,
        steps=steps,
        loss=last.loss,
        step_seconds=median(meter.step_seconds),
        wire_bytes=None if last.nbytes is None else last.nbytes / steps,
        target_loss=target,
        seconds_to_target=None if target is None else seconds_to(curve, target),
        curve=curve,
    )


def _sequences(symbols: np.ndarray, starts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences that begin at `starts`, and what follows each symbol: int64 of shape (starts, context)."""
    places = starts[:, None] + np.arange(SHAPE.context + 1)
    both = torch.from_numpy(symbols[places].astype(np.int64))
    return both[:, :-1], both[:, 1:]


def _point(world: World, model: torch.nn.Module, meter: Meter, text: Text, step: int) -> Point:
    """Where a run is; the ranks share the work of validation."""
    last = text.validation.size - SHAPE.context - 1
    starts = np.linspace(0, last, _VALIDATION_SEQUENCES, dtype=np.int64)[world.rank :: world.size]
    total = 0.0
    if starts.size:
        with torch.no_grad():
            x, y = _sequences(text.validation, starts)
            total = cross_entropy(model(x), y).item() * starts.size
    loss = world.comm.allreduce(total) / _VALIDATION_SEQUENCES
    nbytes = None if meter.nbytes is None else world.largest(meter.nbytes)
    return Point(step, meter.seconds, nbytes, loss)
