"""Topologies from what NCCL writes to ``NCCL_TOPO_DUMP_FILE``, or reads from ``NCCL_TOPO_FILE``.

A file tells of one host (of several where one NVLink domain spans them), as a tree of PCI devices under its processors:
``<system><cpu><pci><gpu><nvlink/></gpu></pci><pci><nic><net/></nic></pci></cpu></system>``. Of the network it tells the
ports only. Read as NCCL reads it (github.com/NVIDIA/nccl, ``src/graph/topo.cc``).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from xml.etree.ElementTree import Element

from collcomp.planner.topology import DEVICE, PORT, SWITCH, Topology
from collcomp.planner.topology.attributes import text_of
from collcomp.planner.topology.drawing import Drawing
from collcomp.planner.topology.hardware import nvlink_bandwidth, pcie_bandwidth, processor_bandwidth

__all__ = ["topology_from_nccl"]

_GPU, _NIC, _NVSWITCH, _PROCESSOR = "0x03", "0x02", "0x068000", "0x068001"
#: What NCCL believes of a card that does not tell: Mbit/s.
_UNKNOWN_SPEED = 10000


def topology_from_nccl(root: Element, name: str) -> Topology:
    """The topology of the element ``<system>``.

    GPUs are devices, in the order of their ranks if they have any.

    Parameters
    ----------
    root : Element
    name : str

    Raises
    ------
    ValueError
        If an attribute is missing, or is no number where one must be; the message names both and the element.
    """
    return _Reader().read(root, name)


class _Reader:
    def __init__(self) -> None:
        self._drawing = Drawing()
        self._gpus: dict[tuple[str, str], str] = {}  # by host and bus
        self._ranks: list[tuple[int, str]] = []
        self._nvlinks: list[tuple[str, str, str, Element]] = []  # host, processor, device, <gpu>

    def read(self, root: Element, name: str) -> Topology:
        hosts: dict[str, list[Element]] = {}
        for cpu in root.iter("cpu"):
            hosts.setdefault(cpu.get("host_hash", ""), []).append(cpu)
        for number, found in enumerate(hosts.values()):
            cpus = [(f"host{number}.numa{cpu.get('numaid', i)}", cpu) for i, cpu in enumerate(found)]
            for processor, cpu in cpus:
                self._drawing.node(processor, SWITCH, f"host{number}")
                self._children(cpu, processor, f"host{number}", processor)
            for (one, cpu), (other, _) in combinations(cpus, 2):
                self._drawing.cable(one, other, _between_processors(cpu))
        if not self._ranks:
            raise ValueError("<system>: there is no <gpu> in it")
        nvswitch = "nvswitch" if len(hosts) > 1 else "host0.nvswitch"  # one file, one NVLink domain
        for host, processor, device, gpu in self._nvlinks:
            self._add_nvlinks(host, processor, device, gpu, nvswitch)
        ranks = sorted(range(len(self._ranks)), key=lambda i: self._ranks[i][0])  # as in the file where ranks are equal
        return self._drawing.topology(name, [self._ranks[i][1] for i in ranks])

    def _children(self, element: Element, parent: str, host: str, processor: str) -> None:
        for child in element:
            if child.tag == "pci":
                self._add_pci(child, parent, host, processor)
            elif child.tag == "nic":
                for port, bandwidth in self._ports(child, host):
                    self._drawing.cable(port, parent, bandwidth)

    def _add_pci(self, pci: Element, parent: str, host: str, processor: str) -> None:
        bus = text_of(pci, "busid")
        bandwidth = pcie_bandwidth(pci.get("link_speed", ""), _number(pci, "link_width", 0))
        kind = pci.get("class", "")
        gpu, nic = pci.find("gpu"), pci.find("nic")
        if gpu is not None or kind.startswith(_GPU):
            number = len([key for key in self._gpus if key[0] == host])
            if gpu is not None:
                number = _number(gpu, "dev", number)
            device = self._drawing.node(f"{host}.gpu{number}", DEVICE, host)
            self._gpus[host, bus] = device
            self._ranks.append((len(self._ranks) if gpu is None else _number(gpu, "rank", len(self._ranks)), device))
            if gpu is not None:
                self._nvlinks.append((host, processor, device, gpu))
            self._drawing.cable(device, parent, bandwidth)
        elif nic is not None:
            card = self._drawing.node(f"{host}.nic.{bus}", SWITCH, host)
            self._drawing.cable(card, parent, bandwidth)
            for port, speed in self._ports(nic, host):
                self._drawing.cable(port, card, speed)
        elif kind.startswith(_NIC):
            self._drawing.cable(self._drawing.node(f"{host}.nic.{bus}", PORT, host), parent, bandwidth)
        elif len(pci):
            switch = self._drawing.node(f"{host}.pci.{bus}", SWITCH, host)
            self._drawing.cable(switch, parent, bandwidth)
            self._children(pci, switch, host, processor)

    def _ports(self, nic: Element, host: str) -> Iterator[tuple[str, float]]:
        for net in nic.iter("net"):
            name = f"{host}.{text_of(net, 'name')}"
            if name in self._drawing:  # one entry for each port of a card
                name = f"{name}.port{text_of(net, 'port')}"
            speed = _number(net, "speed", 0)
            yield self._drawing.node(name, PORT, host), (speed if speed > 0 else _UNKNOWN_SPEED) * 1e6 / 8

    def _add_nvlinks(self, host: str, processor: str, device: str, gpu: Element, nvswitch: str) -> None:
        for link in gpu.iter("nvlink"):
            bandwidth = _number(link, "count") * nvlink_bandwidth(_number(gpu, "sm"))
            kind = text_of(link, "tclass")
            if kind.startswith(_GPU):
                # Each of two GPUs tells of its own direction. A GPU that is not in the file is not used either.
                if (peer := self._gpus.get((host, text_of(link, "target")))) is not None:
                    self._drawing.link(device, peer, bandwidth)
            elif kind.startswith(_PROCESSOR):
                self._drawing.cable(device, processor, bandwidth)
            elif kind.startswith(_NVSWITCH):
                if nvswitch not in self._drawing:
                    self._drawing.node(nvswitch, SWITCH, host if nvswitch.startswith(host) else None)
                self._drawing.cable(device, nvswitch, bandwidth)
            else:
                raise ValueError(f"<nvlink>: tclass={kind!r} is no GPU, NVSwitch or processor")
        for link in gpu.iter("c2c"):
            self._drawing.cable(device, processor, _number(link, "count") * _number(link, "bw") * 1e6)


def _between_processors(cpu: Element) -> float:
    # CPUID's family and model come in two parts, of which NCCL has only the family's left apart.
    family = _number(cpu, "familyid", 0)
    return processor_bandwidth(
        cpu.get("vendor", ""), (family & 15) + (family >> 4), _number(cpu, "modelid", 0), cpu.get("arch", "x86_64")
    )


def _number(element: Element, attribute: str, default: int | None = None) -> int:
    if default is not None and not element.get(attribute):
        return default
    value = text_of(element, attribute)
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"<{element.tag}>: {attribute}={value!r} is no number") from None
