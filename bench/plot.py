"""Plots of what was measured; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .table import bytes_text

if TYPE_CHECKING:
    from .osu.driver import Row
    from .train import Result

__all__ = ["plot_times", "plot_training"]


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


def plot_training(results: Sequence[Result], path: str) -> None:
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


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
