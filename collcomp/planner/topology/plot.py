"""Pictures of topologies: hosts below, switches above them in tiers, links as wide and as red as they are busy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from collcomp.planner.topology import DEVICE, PORT, SWITCH, Node, Topology

__all__ = ["plot_topology"]

_BUSY = LinearSegmentedColormap.from_list("busy", ["#ccd2da", "#4f8fc9", "#eda63a", "#c62f2b"])
_FACES = {DEVICE: "#2f5d8a", PORT: "#7d8894", SWITCH: "#f4efe4"}
#: Rows from below, in units of a device's width.
_INSIDE, _DEVICES, _PORTS, _FIRST_TIER = 0.0, 1.6, 3.0, 6.5
_INSIDE_HEIGHT, _TIER_HEIGHT = 1.6, 5.0

Places = dict[str, tuple[float, float]]


def plot_topology(
    topology: Topology, path: str | Path, use: Mapping[tuple[str, str], float] | None = None, title: str | None = None
) -> None:
    """Draw a topology to a PNG.

    A cable is one line, as busy as its busier direction. Hosts stand side by side, up to some 64 of them readably;
    networks whose switches have no tiers, as tori and dragonflies, are drawn as a web.

    Parameters
    ----------
    topology : Topology
    path : str or Path
    use : mapping of (str, str) to float, optional
        Which part of a link's bandwidth is in use, by its ends; links that are not named are idle. Without it, lines
        are wider where there is more bandwidth.
    title : str, optional
        Stands above, in place of what there is to see.

    Raises
    ------
    ValueError
        If `use` names a link that is none of the topology, or a part below 0.
    """
    for link, part in (use or {}).items():
        if link not in topology.links or not part >= 0:
            raise ValueError(f"use: {link!r} with {part!r} is no link of {topology.name!r} and part of it")
    tiers = _tiers(topology)
    places = _web(topology) if tiers is None else _rows(topology, tiers)
    xs, ys = ([place[axis] for place in places.values()] for axis in (0, 1))
    width = min(max(0.32 * (max(xs) - min(xs)) + 2.0, 7.0), 24.0)
    height = width * 0.9 if tiers is None else max(0.32 * (max(ys) - min(ys)) + 1.5, 0.42 * width)
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_title(title or _caption(topology, use), fontsize=11, loc="left", pad=14)
    if tiers is not None:
        _draw_hosts(axes, topology, places)
    _draw_links(axes, topology, places, use)
    _draw_nodes(axes, topology, places, 72 * width / (max(xs) - min(xs) + 1.0), tiers is None)
    if use is not None:
        figure.colorbar(
            axes.collections[0], ax=axes, shrink=0.7, aspect=30, pad=0.01, label="part of the bandwidth in use"
        )
    axes.margins(0.02)
    axes.autoscale_view()
    figure.savefig(path)


def _caption(topology: Topology, use: Mapping[tuple[str, str], float] | None) -> str:
    text = f"{topology.name}: {len(topology.devices)} devices, {len(topology.switches)} switches"
    if not use:
        return text
    (source, dest), part = max(use.items(), key=lambda item: item[1])
    return f"{text}; busiest is {source} → {dest}, {part:.0%}"


# ---------------------------------------------------------------------- where things are


def _tiers(topology: Topology) -> dict[str, int] | None:
    """How many links lie between each switch of the network and the hosts; None if they are no tiers."""
    network = [name for name, node in topology.nodes.items() if _is_network(node)]
    graph = topology.graph.to_undirected()
    below = [name for name, node in topology.nodes.items() if not _is_network(node)]
    distances = nx.multi_source_dijkstra_path_length(graph, set(below), weight=None)
    tiers = {name: int(distances.get(name, 1)) for name in network}
    level = any(tiers.get(source, -1) == tiers.get(dest, -2) for source, dest in topology.links)
    across = any(
        _host(topology.nodes[source]) != _host(topology.nodes[dest])
        for source, dest in topology.links
        if source not in tiers and dest not in tiers
    )
    return None if level or across else tiers


def _is_network(node: Node) -> bool:
    return node.kind == SWITCH and node.host is None


def _host(node: Node) -> str:
    return node.host or node.name


def _rows(topology: Topology, tiers: Mapping[str, int]) -> Places:
    """Hosts side by side, each with its ports, devices and switches below each other; then the tiers above."""
    hosts: dict[str, list[str]] = {}
    for name, node in topology.nodes.items():
        if name not in tiers:
            hosts.setdefault(_host(node), []).append(name)
    places: Places = {}
    left = 0.0
    for names in hosts.values():
        rows = _host_rows(topology, names)
        room = max(map(len, rows.values()))
        for y, row in rows.items():
            if y <= _INSIDE:
                row.sort(key=lambda name: _middle(topology, places, name))
            for i, name in enumerate(row):
                places[name] = left + (i + 0.5) * room / len(row), y
        left += room + 0.8
    for tier in sorted(set(tiers.values())):
        row = [name for name in tiers if tiers[name] == tier]
        row.sort(key=lambda name: (topology.nodes[name].plane or 0, _middle(topology, places, name)))
        for i, name in enumerate(row):
            places[name] = (i + 0.5) * (left - 0.8) / len(row), _FIRST_TIER + (tier - 1) * _TIER_HEIGHT
    return places


def _host_rows(topology: Topology, names: list[str]) -> dict[float, list[str]]:
    """What is in a host by its heights, from above; switches are as deep as they are far from devices and ports."""
    kinds = {name: topology.nodes[name].kind for name in names}
    graph = topology.graph.subgraph(names).to_undirected(as_view=True)
    tops = {name for name in names if kinds[name] != SWITCH}
    depths = nx.multi_source_dijkstra_path_length(graph, tops, weight=None) if tops else {}
    rows: dict[float, list[str]] = {}
    for name in names:
        inside = _INSIDE - _INSIDE_HEIGHT * (depths.get(name, 1) - 1)
        rows.setdefault({DEVICE: _DEVICES, PORT: _PORTS, SWITCH: inside}[kinds[name]], []).append(name)
    return dict(sorted(rows.items(), reverse=True))


def _middle(topology: Topology, places: Places, name: str) -> float:
    """The middle of the neighbours that have their places."""
    near = [places[other][0] for other in topology.graph.predecessors(name) if other in places]
    return sum(near) / max(len(near), 1)


def _web(topology: Topology) -> Places:
    graph = topology.graph.to_undirected()
    found = nx.kamada_kawai_layout(graph) if len(graph) <= 150 else nx.spring_layout(graph, seed=1, iterations=100)
    spread = 1.6 * math.sqrt(len(graph))
    return {name: (float(x) * spread, float(y) * spread) for name, (x, y) in found.items()}


# ---------------------------------------------------------------------- what they look like


def _draw_hosts(axes: Axes, topology: Topology, places: Places) -> None:
    members: dict[str, list[str]] = {}
    for name, node in topology.nodes.items():
        if not _is_network(node):
            members.setdefault(_host(node), []).append(name)
    small = len(members) > 24
    for host, names in members.items():
        xs, ys = ([places[name][axis] for name in names] for axis in (0, 1))
        named = any(topology.nodes[name].kind == SWITCH for name in names)  # below it
        left, low = min(xs) - 0.55, min(_lowest(topology, places, names), min(ys) - (1.0 if named else 0.6))
        axes.add_patch(
            FancyBboxPatch(
                (left, low),
                max(xs) - left + 0.55,
                max(ys) - low + 0.6,
                boxstyle="round,pad=0,rounding_size=0.2",
                facecolor="#f3f6fa",
                edgecolor="#c3ccd8",
                linewidth=0.8,
                zorder=0,
            )
        )
        middle = (min(xs) + max(xs)) / 2
        turned = 90 if small else 0
        axes.text(middle, low - 0.25, host, ha="center", va="top", fontsize=6 if small else 8, rotation=turned)


def _draw_links(axes: Axes, topology: Topology, places: Places, use: Mapping[tuple[str, str], float] | None) -> None:
    cables: dict[tuple[str, str], float] = {}
    for (source, dest), link in topology.links.items():
        ends = min((source, dest), (dest, source))
        cables[ends] = max(cables.get(ends, 0.0), link.bandwidth if use is None else use.get((source, dest), 0.0))
    order = sorted(cables, key=lambda ends: cables[ends])  # the busiest on top
    shown = [cables[ends] for ends in order]
    lines = [_line(places[one], places[other]) for one, other in order]
    if use is None:
        widths: Iterable[float] = [0.6 + 0.6 * math.log2(1 + part / shown[0]) for part in shown]
        axes.add_collection(LineCollection(lines, linewidths=list(widths), colors="#9aa5b3", zorder=1))
    else:
        widths = [0.5 + 2.3 * min(part, 1.0) for part in shown]
        collection = LineCollection(lines, linewidths=list(widths), cmap=_BUSY, norm=Normalize(0.0, 1.0), zorder=1)
        collection.set_array(shown)
        axes.add_collection(collection)


def _lowest(topology: Topology, places: Places, names: list[str]) -> float:
    """How low the lines hang between some nodes."""
    lines = (
        _line(places[one], places[other]) for one, other in permutations(names, 2) if (one, other) in topology.links
    )
    return min((y for line in lines for _, y in line), default=math.inf) - 0.2


def _line(one: tuple[float, float], other: tuple[float, float]) -> list[tuple[float, float]]:
    """A straight line, or one that hangs through where things in between stand in the same row."""
    if one[1] != other[1] or abs(one[0] - other[0]) < 1.5:
        return [one, other]
    sag = 0.25 + 0.09 * abs(one[0] - other[0])
    steps = [step / 12 for step in range(13)]
    return [(one[0] + t * (other[0] - one[0]), one[1] - sag * 4 * t * (1 - t)) for t in steps]


def _draw_nodes(axes: Axes, topology: Topology, places: Places, room: float, web: bool) -> None:
    """Marks and names; `room` is what a device's width has on paper, in points."""
    side = min(max(room * 0.55, 2.5), 13.0)
    inside = {name: node for name, node in topology.nodes.items() if not _is_network(node)}
    for kind, mark, size in ((DEVICE, "s", side), (PORT, "o", side * 0.6), (SWITCH, "s", side)):
        names = [name for name, node in inside.items() if node.kind == kind]
        xs, ys = [places[name][0] for name in names], [places[name][1] for name in names]
        axes.plot(xs, ys, mark, markersize=size, color=_FACES[kind], markeredgecolor="#3b4654", markeredgewidth=0.5)
    for name, node in inside.items():
        x, y = places[name]
        number = re.search(r"\d+$", name)
        if node.kind == DEVICE and side > 7 and number and not web:
            axes.text(x, y, number[0], ha="center", va="center_baseline", fontsize=side * 0.5, color="white")
        elif node.kind == SWITCH and not web:
            axes.text(x, y - 0.45, _short(name), ha="center", va="top", fontsize=5.5)
        elif node.kind == DEVICE and web:
            axes.text(x, y - 0.45, name, ha="center", va="top", fontsize=5.5)
    network = [name for name in places if name not in inside]
    crowded = web or max((sum(places[other][1] == places[name][1] for other in network) for name in network), default=0)
    for name in network:
        axes.text(
            *places[name],
            name.replace(".", "\n"),
            ha="center",
            va="center",
            fontsize=5.5 if crowded > 20 or web else 8,
            rotation=90 if crowded > 30 else 0,
            bbox={"boxstyle": "round,pad=0.3", "facecolor": _FACES[SWITCH], "edgecolor": "#8a7f66", "linewidth": 0.8},
            zorder=5,
        )


def _short(name: str) -> str:
    """The last part of a name, or the PCI bus that it ends with."""
    bus = re.search(r"[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]$", name)
    return bus[0] if bus else name.rpartition(".")[2]
