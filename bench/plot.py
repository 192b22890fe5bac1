"""Plots of what was measured; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from collcomp.units import bytes_text

if TYPE_CHECKING:
    from .osu.driver import Row
    from .switch.command import Throughput
    from .train import digits, results

__all__ = ["plot_losses", "plot_times", "plot_training", "plot_windows"]


def plot_times(rows: Sequence[Row], path: str) -> None:
    """Time against size, a line for each codec; dashed where the link allows no less."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for codec in dict.fromkeys(row.codec for row in rows):
        mine = [row for row in rows if row.codec == codec]
        sizes = [row.nbytes for row in mine]
        label = f"native {mine[0].mpi}" if codec == "none" else f"{codec} ({mine[0].algorithm})"
        (drawn,) = axes.plot(sizes, [row.seconds * 1e3 for row in mine], "o-", label=label, markersize=4)
        if mine[0].bound_seconds is not None:
            bounds = [row.bound_seconds * 1e3 for row in mine if row.bound_seconds is not None]
            axes.plot(sizes, bounds, "--", color=drawn.get_color(), linewidth=1, alpha=0.7)
    if rows[0].bound_seconds is not None:
        axes.plot([], [], "--", color="gray", linewidth=1, label="bound: wire bytes / link rate")
    sizes = sorted({row.nbytes for row in rows})
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="message size",
        ylabel="time, ms (median of the slowest rank)",
        title=f"{rows[0].collective}, {rows[0].ranks} ranks, link {rows[0].link}",
    )
    shown = sizes[:: -(-len(sizes) // 9)]
    axes.set_xticks(shown, [bytes_text(size) for size in shown])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_training(results: Sequence[digits.Result], path: str) -> None:
    """Test accuracy against the time of a step, a point for each run."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for codec in dict.fromkeys(result.codec for result in results):
        mine = [result for result in results if result.codec == codec]
        axes.plot(
            [result.step_seconds * 1e3 for result in mine],
            [result.accuracy * 100 for result in mine],
            "o",
            label=codec,
        )
    axes.set(
        xscale="log",
        xlabel="time of a step, ms",
        ylabel="test accuracy, %",
        title=f"{results[0].model}, {results[0].ranks} ranks, link {results[0].link}",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_losses(runs: Sequence[results.Result], path: str) -> None:
    """Validation loss against time and against bytes, the mean of the seeds; bytes only where they were counted."""
    plt = _pyplot()
    counted = runs[0].wire_bytes is not None
    panels = [("seconds", 1, "training time, s")] + counted * [("nbytes", 1e-6, "sent by the busiest rank, MB")]
    figure, row = plt.subplots(
        ncols=len(panels), figsize=(6.5 * len(panels), 5.5), layout="constrained", sharey=True, squeeze=False
    )
    for axes, (attribute, scale, label) in zip(row[0], panels, strict=True):
        for codec in dict.fromkeys(run.codec for run in runs):
            # As far as all seeds went, without the untrained model, which has no place on a logarithmic axis.
            points = list(zip(*(run.curve[1:] for run in runs if run.codec == codec), strict=False))
            axes.plot(
                [scale * fmean(getattr(point, attribute) for point in step) for step in points],
                [fmean(point.loss for point in step) for step in points],
                label=codec,
            )
        axes.set(xscale="log", xlabel=label)
        axes.grid(alpha=0.3, which="both")
    row[0][0].set_ylabel("validation loss, nats a character")
    row[0][0].legend()
    figure.suptitle(f"{runs[0].model}, {runs[0].ranks} ranks, link {runs[0].link}")
    figure.savefig(path, dpi=150)


def plot_windows(rows: Sequence[Throughput], enough: float, title: str, path: str) -> None:
    """Throughput by packets under way, beside what bandwidth and round-trip time let through."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    windows = [row.window for row in rows]
    axes.plot(windows, [row.bytes_per_second / 1e6 for row in rows], "o-", label="measured", markersize=4)
    axes.plot(windows, [row.expected / 1e6 for row in rows], "--", color="gray", label="expected")
    axes.axvline(enough, color="gray", linewidth=1, alpha=0.7, label="bandwidth x round trip / packet")
    axes.set(xscale="log", xlabel="packets under way", ylabel="values summed, MB/s", title=title)
    axes.set_xticks(windows, [str(window) for window in windows])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
