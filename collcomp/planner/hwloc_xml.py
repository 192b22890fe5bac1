"""Topologies from what ``lstopo --of xml`` writes (hwloc 2).

A file tells of one host: packages, the PCI bridges and devices near each, what a PCI link carries, and the NVLinks if
hwloc was built with NVML. Of the network it tells the cards only.
"""

from __future__ import annotations

from itertools import combinations
from xml.etree.ElementTree import Element

from collcomp.planner.drawing import Drawing
from collcomp.planner.hardware import processor_bandwidth
from collcomp.planner.topology import DEVICE, PORT, SWITCH, Topology

__all__ = ["topology_from_hwloc"]

_HOST = "host0"


def topology_from_hwloc(root: Element, name: str) -> Topology:
    """The topology of the element ``<topology>``.

    GPUs are devices, in the order of their PCI buses; where there is none, packages are. Network cards are ports, as
    fast as their PCI links, which lstopo finds out only with the right to read them (as root, as a rule).

    Parameters
    ----------
    root : Element
    name : str

    Raises
    ------
    ValueError
        If there is no package, or a PCI link that is needed has no speed; the message names the element.
    """
    return _Reader(root).read(name)


class _Reader:
    def __init__(self, root: Element) -> None:
        self._root = root
        self._drawing = Drawing()
        buses = sorted(_text(element, "pci_busid") for element in root.iter("object") if _is_gpu(element))
        self._gpus = {bus: f"{_HOST}.gpu{i}" for i, bus in enumerate(buses)}
        self._objects: dict[str, Element] = {}  # by gp_index, those inside GPUs and NVSwitches

    def read(self, name: str) -> Topology:
        packages = [element for element in self._root.iter("object") if element.get("type") == "Package"]
        if not packages:
            raise ValueError('<topology>: there is no <object type="Package"> in it')
        kind = SWITCH if self._gpus else DEVICE
        names = [self._drawing.node(f"{_HOST}.package{i}", kind, _HOST) for i in range(len(packages))]
        for (one, package), (other, _) in combinations(zip(names, packages, strict=True), 2):
            self._drawing.cable(one, other, _between_packages(package))
        self._objects_of(self._root, names[0], dict(zip(map(id, packages), names, strict=True)))
        self._add_nvlinks()
        return self._drawing.topology(name, list(self._gpus.values()) or names)

    def _objects_of(self, element: Element, near: str, packages: dict[int, str]) -> None:
        """Go through all that is no PCI device; bridges outside of packages are near the first."""
        for child in element.findall("object"):
            if child.get("type") == "Bridge":
                self._add_pci(child, near, 0.0)
            else:
                self._objects_of(child, packages.get(id(child), near), packages)

    def _add_pci(self, element: Element, parent: str, above: float) -> None:
        """Put down a bridge or PCI device below `parent`, whose own link carries `above`; 0 is not known."""
        bandwidth = _speed(element) or above
        if element.get("type") == "Bridge":
            if _pci_devices(element):
                switch = self._drawing.node(f"{_HOST}.bridge{_text(element, 'gp_index')}", SWITCH, _HOST)
                for child in element.findall("object"):
                    self._add_pci(child, switch, bandwidth)
                # A bridge to the host has no PCI link of its own: it carries all that is below it.
                self._drawing.cable(switch, parent, bandwidth or sum(map(_speed, element.findall("object"))))
            return
        for inner in element.iter("object"):
            self._objects[inner.get("gp_index", "")] = element
        if not _is_used(element):
            return
        bus = _text(element, "pci_busid")
        if not bandwidth:
            raise ValueError(f"<object>: pci_link_speed of the PCI device {bus} is not known; run lstopo as root")
        if _is_gpu(element):
            device = self._drawing.node(self._gpus[bus], DEVICE, _HOST)
        else:
            cards = [inner.get("name", "") for inner in element.iter("object") if inner.get("osdev_type") in ("2", "3")]
            device = self._drawing.node(f"{_HOST}.{cards[-1] if cards else bus}", PORT, _HOST)
        self._drawing.cable(device, parent, bandwidth)

    def _add_nvlinks(self) -> None:
        for matrix in [*self._root.iter("distances2"), *self._root.iter("distances2hetero")]:
            if matrix.get("name") != "NVLinkBandwidth":
                continue
            indexes = "".join(part.text or "" for part in matrix.iter("indexes")).split()
            values = "".join(part.text or "" for part in matrix.iter("u64values")).split()
            ends = [self._end(index.rpartition(":")[2]) for index in indexes]
            if len(values) != len(ends) ** 2 or not all(value.isdecimal() for value in values):
                raise ValueError(f"<{matrix.tag}>: {len(values)} u64values are not the square of {len(ends)} indexes")
            for i, value in enumerate(values):
                source, dest = ends[i // len(ends)], ends[i % len(ends)]
                if source and dest and source != dest and int(value):
                    self._drawing.link(source, dest, int(value) * 1e6)

    def _end(self, index: str) -> str | None:
        """The GPU that an object is in, or the switch, all of whose ports are one; None if it is not used."""
        device = self._objects.get(index)
        if device is None:
            return None
        if _is_gpu(device):
            return self._gpus[_text(device, "pci_busid")]
        switch = f"{_HOST}.nvswitch"
        return switch if switch in self._drawing else self._drawing.node(switch, SWITCH, _HOST)


def _pci_devices(bridge: Element) -> bool:
    return any(_is_used(element) for element in bridge.iter("object"))


def _is_used(element: Element) -> bool:
    return _is_gpu(element) or _class(element) == "02"


def _is_gpu(element: Element) -> bool:
    """Whether it can compute: a 3D controller, an accelerator, or a display that CUDA, OpenCL or ROCm can use."""
    kind = element.get("pci_type", "")[:4]
    computes = any(inner.get("osdev_type") == "5" for inner in element.iter("object"))
    return element.get("type") == "PCIDev" and (kind in ("0302", "1200") or (kind[:2] == "03" and computes))


def _class(element: Element) -> str:
    return element.get("pci_type", "")[:2] if element.get("type") == "PCIDev" else ""


def _speed(element: Element) -> float:
    value = element.get("pci_link_speed", "0")
    try:
        return float(value) * 1e9
    except ValueError:
        raise ValueError(f"<object>: pci_link_speed={value!r} is no number") from None


def _between_packages(package: Element) -> float:
    told = {info.get("name"): info.get("value", "") for info in package.findall("info")}
    try:
        family, model = int(told.get("CPUFamilyNumber", 0)), int(told.get("CPUModelNumber", 0))
    except ValueError:
        raise ValueError(f"<info>: CPUFamilyNumber or CPUModelNumber is no number in {told}") from None
    return processor_bandwidth(told.get("CPUVendor", ""), family, model)


def _text(element: Element, attribute: str) -> str:
    value = element.get(attribute)
    if not value:
        raise ValueError(f"<{element.tag}>: it has no {attribute}")
    return value
