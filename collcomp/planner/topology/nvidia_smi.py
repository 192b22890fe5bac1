"""Topologies from the matrix that ``nvidia-smi topo -m`` prints.

It tells what lies between two GPUs or cards, from near to far: PIX one PCIe switch, PXB several, PHB a host bridge,
NODE the links inside a NUMA node, SYS those between processors; and NV#, so many NVLinks. It tells no bandwidths: those
of PCIe and processors are taken as what NCCL takes where it does not know better.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile

import networkx as nx

from collcomp.planner.topology import DEVICE, PORT, SWITCH, Topology
from collcomp.planner.topology.drawing import Drawing
from collcomp.planner.topology.hardware import nvlink_bandwidth, pcie_bandwidth, processor_bandwidth

__all__ = ["is_nvidia_smi", "topology_from_nvidia_smi"]

_LEVELS = ("PIX", "PXB", "PHB", "NODE", "SYS")
#: No GPU has more NVLinks: if the matrix has more in a row, they go to a switch, and each number is all of them.
_MOST_NVLINKS = 18
#: What nvidia-smi underlines its head with.
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def is_nvidia_smi(text: str) -> bool:
    """Whether this is such a matrix."""
    return re.match(r"\s*GPU0\b", _ESCAPES.sub("", text)) is not None


def topology_from_nvidia_smi(text: str, name: str) -> Topology:
    """The topology of one host.

    An NVLink counts as 20 GB/s, that of compute capability 7.0 to 8.9, and PCIe as 12 GB/s. GPUs that NVLinks join show
    nothing else of their places, which then follow from their processors' (``CPU Affinity``) and the cards'.

    Parameters
    ----------
    text : str
    name : str

    Raises
    ------
    ValueError
        If the matrix is not square, or has an entry that is none of those above.
    """
    rows, affinities = _matrix(text)
    gpus = [label for label in rows if label.startswith("GPU")]
    if not gpus:
        raise ValueError("matrix: there is no GPU in it")
    drawing = Drawing()
    cards = dict(re.findall(r"(NIC\d+):\s*(\S+)", text))
    names = {label: f"host0.{label.lower() if label in gpus else cards.get(label, label)}" for label in rows}
    for label in rows:
        drawing.node(names[label], DEVICE if label in gpus else PORT, "host0")
    _add_nvlinks(drawing, gpus, rows, names)
    _add_pcie(drawing, rows, affinities, names)
    return drawing.topology(name)


def _matrix(text: str) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The entries, and the processors of each row."""
    lines = [line for line in _ESCAPES.sub("", text).splitlines() if line.strip()]
    columns = list(takewhile(lambda label: label != "CPU", lines[0].split()))  # the next is "CPU Affinity"
    rows: dict[str, dict[str, str]] = {}
    affinities: dict[str, str] = {}
    for line in lines[1:]:
        label, *entries = line.split()
        if label not in columns:
            break  # what the words mean
        if len(entries) < len(columns):
            raise ValueError(f"matrix: the row {label} has {len(entries)} entries, not {len(columns)}")
        rows[label] = dict(zip(columns, entries, strict=False))
        affinities[label] = entries[len(columns)] if len(entries) > len(columns) else ""
    if missing := [label for label in columns if label not in rows]:
        raise ValueError(f"matrix: there is no row {missing[0]}")
    for label, row in rows.items():
        for other, entry in row.items():
            if not re.fullmatch(rf"X|NV\d+|{'|'.join(_LEVELS)}", entry) or (entry == "X") != (label == other):
                raise ValueError(
                    f"matrix: {entry!r} between {label} and {other} is none of X, NV#, {', '.join(_LEVELS)}"
                )
    return rows, affinities


def _add_nvlinks(
    drawing: Drawing, gpus: list[str], rows: Mapping[str, Mapping[str, str]], names: Mapping[str, str]
) -> None:
    counts = {gpu: {peer: int(rows[gpu][peer][2:]) for peer in gpus if rows[gpu][peer][:2] == "NV"} for gpu in gpus}
    each = nvlink_bandwidth(80)
    if max(sum(count.values()) for count in counts.values()) > _MOST_NVLINKS:
        switch = drawing.node("host0.nvswitch", SWITCH, "host0")
        for gpu, count in counts.items():
            if count:
                drawing.cable(names[gpu], switch, max(count.values()) * each)
        return
    for gpu, count in counts.items():
        for peer, links in count.items():
            drawing.link(names[gpu], names[peer], links * each)


def _add_pcie(
    drawing: Drawing, rows: Mapping[str, Mapping[str, str]], affinities: Mapping[str, str], names: Mapping[str, str]
) -> None:
    """Put a switch above all that are near to each other, level by level."""
    tops = {label: names[label] for label in rows}  # what leads out of the part that a label is in
    near = nx.Graph()
    near.add_nodes_from(rows)
    for depth, level in enumerate(_LEVELS):
        near.add_edges_from(
            (label, other) for label, row in rows.items() for other, entry in row.items() if entry == level
        )
        if level == "NODE":
            near.add_edges_from(_together(affinities))
        elif level == "SYS":
            near.add_edges_from((label, other) for label in rows for other in rows if label != other)
        for part in list(nx.connected_components(near)):
            parts = list(dict.fromkeys(tops[label] for label in rows if label in part))
            if len(parts) > 1:
                number = min(list(rows).index(label) for label in part)
                switch = drawing.node(f"host0.{level.lower()}{number}", SWITCH, "host0")
                for below in parts:
                    drawing.cable(below, switch, processor_bandwidth("") if depth == 4 else pcie_bandwidth("", 0))
                tops.update(dict.fromkeys(part, switch))


def _together(affinities: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    first: dict[str, str] = {}
    for label, affinity in affinities.items():
        if affinity and affinity != "N/A":
            yield first.setdefault(affinity, label), label
