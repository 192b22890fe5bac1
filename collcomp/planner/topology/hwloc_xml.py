"""Topologies from what ``lstopo --of xml`` writes (hwloc 2 and 3).

A file tells of one host: packages, the PCI bridges and devices near each, what a PCI link carries, and the NVLinks if
hwloc was built with NVML. Of the network it tells the cards only.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from xml.etree.ElementTree import Element

from collcomp.planner.topology import DEVICE, PORT, SWITCH, Topology
from collcomp.planner.topology.attributes import text_of
from collcomp.planner.topology.drawing import Drawing
from collcomp.planner.topology.hardware import pcie_bandwidth, processor_bandwidth

__all__ = ["topology_from_hwloc"]

_HOST = "host0"
#: Types of an ``OSDev`` that is a network card, and of one that computes: a number in hwloc 2, bits in hwloc 3.
_NETWORKS = {"2": (2, 3), "3": (16, 32)}
_COMPUTES = {"2": (5,), "3": (8, 12)}


def topology_from_hwloc(root: Element, name: str) -> Topology:
    """The topology of the element ``<topology>``.

    GPUs are devices, in the order of their PCI buses; where there is none, packages are. Network cards are ports, as
    fast as their PCI links. A PCI link whose speed lstopo did not find out (it takes root, and no virtual machine)
    counts as one of PCIe 3 with 16 lanes, as NCCL has it.

    Parameters
    ----------
    root : Element
    name : str

    Raises
    ------
    ValueError
        If there is no package, or a number is none; the message names the element and the value.
    """
    return _Reader(root).read(name)


class _Reader:
    def __init__(self, root: Element) -> None:
        self._root = root
        self._version = root.get("version", "2")[:1]
        if self._version not in _NETWORKS:
            raise ValueError(f"<topology>: version={root.get('version')!r} is neither 2 nor 3")
        self._drawing = Drawing()
        buses = sorted(text_of(element, "pci_busid") for element in root.iter("object") if self._is_gpu(element))
        self._gpus = {bus: f"{_HOST}.gpu{i}" for i, bus in enumerate(buses)}
        self._ends: dict[str, str] = {}  # what has NVLinks, by its gp_index

    def read(self, name: str) -> Topology:
        packages = [element for element in self._root.iter("object") if element.get("type") == "Package"]
        if not packages:
            raise ValueError('<topology>: there is no <object type="Package"> in it')
        kind = SWITCH if self._gpus else DEVICE
        names = [self._drawing.node(f"{_HOST}.package{i}", kind, _HOST) for i in range(len(packages))]
        self._ends = {text_of(package, "gp_index"): name for package, name in zip(packages, names, strict=True)}
        arch = next(
            (info.get("value", "") for info in self._root.iter("info") if info.get("name") == "Architecture"), ""
        )
        for (one, package), (other, _) in combinations(zip(names, packages, strict=True), 2):
            self._drawing.cable(one, other, _between_packages(package, arch))
        self._objects_of(self._root, names[0])
        self._add_nvlinks()
        return self._drawing.topology(name, list(self._gpus.values()) or names)

    def _objects_of(self, element: Element, near: str) -> None:
        """Go through all that is no PCI device; bridges outside of packages are near the first."""
        for child in element.findall("object"):
            if child.get("type") == "Bridge":
                self._add_pci(child, near, 0.0)
            else:
                self._objects_of(child, self._ends.get(child.get("gp_index", ""), near))

    def _add_pci(self, element: Element, parent: str, above: float) -> None:
        """Put down a bridge or PCI device below `parent`, whose own link carries `above`; 0 is not known."""
        bandwidth = _speed(element) or above
        if element.get("type") == "Bridge":
            self._add_bridge(element, parent, bandwidth)
            return
        if self._is_gpu(element):
            node = self._drawing.node(self._gpus[text_of(element, "pci_busid")], DEVICE, _HOST)
            self._drawing.cable(node, parent, bandwidth or pcie_bandwidth("", 0))
        elif element.get("subtype") == "NVSwitch":
            node = f"{_HOST}.nvswitch"  # all of them are one
            if node not in self._drawing:
                self._drawing.node(node, SWITCH, _HOST)
        elif _class(element) == "02":
            name = self._card(element) or text_of(element, "pci_busid")
            node = self._drawing.node(f"{_HOST}.{name}", PORT, _HOST)
            self._drawing.cable(node, parent, bandwidth or pcie_bandwidth("", 0))
        else:
            return
        self._ends.update((inner.get("gp_index", ""), node) for inner in element.iter("object"))

    def _add_bridge(self, bridge: Element, parent: str, bandwidth: float) -> None:
        used = [child for child in bridge.findall("object") if self._is_used(child)]
        node = parent
        if used:
            node = self._drawing.node(f"{_HOST}.bridge{text_of(bridge, 'gp_index')}", SWITCH, _HOST)
            # A bridge to the host has no PCI link of its own: it carries all that is below it.
            own = bandwidth or sum(_speed(child) or pcie_bandwidth("", 0) for child in used)
            self._drawing.cable(node, parent, own)
        for child in bridge.findall("object"):
            self._add_pci(child, node, bandwidth)

    def _add_nvlinks(self) -> None:
        for matrix in [*self._root.iter("distances2"), *self._root.iter("distances2hetero")]:
            if matrix.get("name") != "NVLinkBandwidth":
                continue
            indexes = "".join(part.text or "" for part in matrix.iter("indexes")).split()
            values = "".join(part.text or "" for part in matrix.iter("u64values")).split()
            if len(values) != len(indexes) ** 2 or not all(value.isdecimal() for value in values):
                raise ValueError(
                    f"<{matrix.tag}>: {len(values)} u64values are not the square of {len(indexes)} indexes"
                )
            ends = [self._ends.get(index.rpartition(":")[2]) for index in indexes]
            for i, value in enumerate(values):
                source, dest = ends[i // len(ends)], ends[i % len(ends)]
                if source and dest and source != dest and int(value):
                    self._drawing.link(source, dest, int(value) * 1e6)

    def _is_used(self, element: Element) -> bool:
        return any(self._is_gpu(inner) or _class(inner) == "02" for inner in element.iter("object"))

    def _is_gpu(self, element: Element) -> bool:
        """Whether it can compute: a 3D controller, an accelerator, or a display that CUDA, OpenCL or ROCm can use."""
        if element.get("type") != "PCIDev":
            return False
        computes = any(self._is_of(inner, _COMPUTES) for inner in element.iter("object"))
        return element.get("pci_type", "")[:4] in ("0302", "1200") or (_class(element) == "03" and computes)

    def _card(self, element: Element) -> str:
        """The name of a network card; the last, where it has one of InfiniBand beside its Ethernet's."""
        names = [inner.get("name", "") for inner in element.iter("object") if self._is_of(inner, _NETWORKS)]
        return names[-1] if names else ""

    def _is_of(self, element: Element, types: Mapping[str, tuple[int, ...]]) -> bool:
        return element.get("osdev_type", "") in map(str, types[self._version])


def _class(element: Element) -> str:
    return element.get("pci_type", "")[:2] if element.get("type") == "PCIDev" else ""


def _speed(element: Element) -> float:
    value = element.get("pci_link_speed", "0")
    try:
        return float(value) * 1e9
    except ValueError:
        raise ValueError(f"<object>: pci_link_speed={value!r} is no number") from None


def _between_packages(package: Element, arch: str) -> float:
    told = {info.get("name"): info.get("value", "") for info in package.findall("info")}
    try:
        family, model = int(told.get("CPUFamilyNumber", 0)), int(told.get("CPUModelNumber", 0))
    except ValueError:
        raise ValueError(f"<info>: CPUFamilyNumber or CPUModelNumber is no number in {told}") from None
    return processor_bandwidth(told.get("CPUVendor", ""), family, model, arch)
