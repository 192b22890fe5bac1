"""The layout that benchmarks run with: the one that the environment names."""

from __future__ import annotations

from collcomp.planner.layout import VARIABLE, layout_of_environment

__all__ = ["groups_for"]


def groups_for(ranks: int) -> tuple[tuple[int, ...], ...]:
    """The groups of so many ranks, all of one size.

    Raises
    ------
    ValueError
        If the environment has none.
    """
    layout = layout_of_environment()
    if isinstance(layout, ValueError):
        raise layout
    if layout is None or not layout.groups:
        raise ValueError(f"{VARIABLE}: has to name the file of a layout with groups (Layout.save writes it)")
    if layout.size != ranks or len({len(group) for group in layout.groups}) > 1:
        raise ValueError(f"{VARIABLE}: the layout has not groups of one size for {ranks} ranks, but {layout.groups}")
    return layout.groups
