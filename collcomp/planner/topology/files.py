"""Topologies from files, whoever wrote them: people, this package, NCCL, hwloc or nvidia-smi.

People write YAML. Either a family of `collcomp.planner.topology.families` and its parameters::

    family: leaf_spine
    hosts: 8
    leaves: 2
    spines: 8
    port_bandwidth: 200 Gbit/s

or nodes and links, with series of names::

    name: two-boxes
    nodes:
      - {name: "host[0-1].gpu[0-7]", kind: device, host: "host[0-1]"}
      - {name: "host[0-1].nvswitch", kind: switch, host: "host[0-1]"}
      - {name: network, kind: switch}
    links:
      - {ends: ["host0.gpu[0-7]", host0.nvswitch], bandwidth: 300 GB/s}       # each with each
      - {ends: ["host1.gpu[0-7]", host1.nvswitch], bandwidth: 300 GB/s}
      - {ends: ["host[0-1].gpu[0-7]", network], bandwidth: 200 Gbit/s, latency: 2us}

Links are cables unless ``one_way: true``; ``pairwise: true`` joins the first with the first, and so on. The family
``copies`` takes a host from another file, which NCCL, hwloc or nvidia-smi may have written::

    family: copies
    host: nccl-topology.xml  # beside this file
    hosts: 4
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from collcomp.planner.topology import Topology
from collcomp.planner.topology.drawing import Drawing
from collcomp.planner.topology.families import FAMILIES
from collcomp.planner.topology.hwloc_xml import topology_from_hwloc
from collcomp.planner.topology.nccl_xml import topology_from_nccl
from collcomp.planner.topology.nvidia_smi import is_nvidia_smi, topology_from_nvidia_smi
from collcomp.planner.topology.quantities import expand, parse_bandwidth, parse_latency

__all__ = ["parse_topology", "read_topology"]

_XML_READERS = {"system": topology_from_nccl, "topology": topology_from_hwloc}


def read_topology(path: str | Path) -> Topology:
    """The topology in a file, of whatever kind the file is by its content.

    Parameters
    ----------
    path : str or Path
        YAML as above, JSON that `Topology.save` wrote, XML that NCCL (``NCCL_TOPO_DUMP_FILE``) or hwloc (``lstopo --of
        xml``) wrote, or what ``nvidia-smi topo -m`` printed.

    Raises
    ------
    ValueError
        If it cannot be read or is none of them, or something in it cannot be; the message names the file, the element
        and the value.
    """
    path = Path(path)
    with _names_file(path):
        return parse_topology(_text_of(path), path.stem, path.parent)


@contextmanager
def _names_file(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read ({error.strerror})") from None
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: a number in it is too large, or it is nested too deep ({error})") from None


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8 ({error})") from None


def parse_topology(text: str, name: str, folder: str | Path = ".") -> Topology:
    """The topology in a text, as `read_topology` does it.

    Parameters
    ----------
    text : str
    name : str
        Its name if the text has none.
    folder : str or Path, default "."
        Where other files are that the text names.

    Raises
    ------
    ValueError
        As `read_topology`, but for the file's name.
    """
    return _from_tool(text, name) or _from_yaml(text, name, Path(folder))


def _from_tool(text: str, name: str) -> Topology | None:
    """The topology in a text that a program wrote, None if it looks like none."""
    start = text.lstrip()[:1]
    if start == "<":
        root = _xml(text)
        if root.tag not in _XML_READERS:
            raise ValueError(f"<{root.tag}>: it is neither NCCL's <system> nor hwloc's <topology>")
        return _XML_READERS[root.tag](root, name)
    if start == "{":
        try:
            return Topology.from_dict(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"it is no JSON ({error})") from None
    return topology_from_nvidia_smi(text, name) if is_nvidia_smi(text) else None


def _xml(text: str) -> ElementTree.Element:
    # hwloc's files name a DTD, which nothing here reads; what a file declares itself could be meant to swell.
    if re.search(r"<!(ENTITY|DOCTYPE[^>]*\[)", text, re.IGNORECASE):
        raise ValueError("<!DOCTYPE>: declarations and entities are not read")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"it is no XML ({error})") from None


class _Loader(yaml.SafeLoader):
    """YAML without aliases: nothing here needs them, and a short file of them can stand for a very long one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"aliases such as *{self.peek_event().anchor} are not read")
        return super().compose_node(parent, index)


def _from_yaml(text: str, name: str, folder: Path) -> Topology:
    try:
        data = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"it is neither XML nor JSON nor a matrix of nvidia-smi, and no YAML ({error})") from None
    if not isinstance(data, dict) or not ("family" in data or "nodes" in data):
        raise ValueError("it has neither a family nor nodes and links")
    return _from_family(data, name, folder) if "family" in data else _from_parts(data, name)


def _from_family(data: Mapping[str, Any], name: str, folder: Path) -> Topology:
    given = dict(data)
    name = str(given.pop("name", name))
    family = given.pop("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"family: {family!r} is none of {', '.join(sorted(FAMILIES))}")
    make = FAMILIES[family]
    known = inspect.signature(make).parameters
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{key}: {family} has no such parameter, but {', '.join(known)}")
        given[key] = _parameter(key, value, folder)
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in given]
    if missing:
        raise ValueError(f"{missing[0]}: {family} cannot do without it")
    if isinstance(host := given.get("host"), Topology) and len(host.hosts) > 1:
        raise ValueError(f"host: {host.name!r} has {len(host.hosts)} hosts, not one")
    try:
        made = make(**given)
    except TypeError as error:
        raise ValueError(f"{family}: {error}") from None
    return Topology(name, made.nodes.values(), made.links.values())


def _parameter(key: str, value: Any, folder: Path) -> Any:
    if key == "host":
        if not isinstance(value, str):
            raise ValueError(f"host: {value!r} is no file")
        with _names_file(folder / value):
            if (host := _from_tool(_text_of(folder / value), Path(value).stem)) is None:
                raise ValueError("it is not what a tool wrote")  # YAML could be a copy of itself
        return host
    if key.endswith("bandwidth"):
        many = isinstance(value, list)
        return [parse_bandwidth(each, key) for each in value] if many else parse_bandwidth(value, key)
    return parse_latency(value, key) if key == "latency" else value


def _from_parts(data: Mapping[str, Any], name: str) -> Topology:
    _check_keys("file", data, {"name", "nodes", "links"})
    drawing = Drawing()
    for node in _mappings(data, "nodes"):
        _check_keys("nodes", node, {"name", "kind", "host", "plane"})
        names = expand(_text(node, "nodes", "name"), "nodes: name")
        hosts = expand(_text(node, "nodes", "host"), "nodes: host") if "host" in node else [None]
        if len(names) % len(hosts):
            raise ValueError(f"nodes: {len(hosts)} hosts of {node['name']!r} cannot share {len(names)} nodes")
        plane = node.get("plane")
        if plane is not None and (isinstance(plane, bool) or not isinstance(plane, int)):
            raise ValueError(f"nodes: plane {plane!r} of {node['name']!r} is no whole number")
        for i, each in enumerate(names):
            drawing.node(each, _text(node, "nodes", "kind"), hosts[i * len(hosts) // len(names)], plane)
    for link in _mappings(data, "links"):
        _add_links(drawing, link)
    return drawing.topology(str(data.get("name", name)))


def _add_links(drawing: Drawing, link: Mapping[str, Any]) -> None:
    _check_keys("links", link, {"ends", "bandwidth", "latency", "one_way", "pairwise"})
    ends = link.get("ends")
    if not isinstance(ends, list) or [type(end) for end in ends] != [str, str]:
        raise ValueError(f"links: ends {ends!r} are not two names")
    bandwidth = parse_bandwidth(link.get("bandwidth"), f"links: bandwidth of {ends}")
    latency = parse_latency(link.get("latency", 0.0), f"links: latency of {ends}")
    sources, dests = (expand(end, f"links: ends of {ends}") for end in ends)
    put = drawing.link if _flag(link, "one_way") else drawing.cable
    if _flag(link, "pairwise"):
        if len(sources) != len(dests):
            raise ValueError(f"links: ends {ends} cannot be pairs, with {len(sources)} and {len(dests)} names")
        pairs: Iterable[tuple[str, str]] = zip(sources, dests, strict=True)
    else:
        pairs = product(sources, dests)
    for source, dest in pairs:
        put(source, dest, bandwidth, latency)


def _mappings(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    items = data.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{key}: it is no list of mappings")
    return items


def _check_keys(where: str, data: Mapping[str, Any], known: set[str]) -> None:
    if unknown := [key for key in data if key not in known]:
        raise ValueError(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(known))}")


def _flag(data: Mapping[str, Any], key: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"links: {key} {value!r} is neither true nor false")
    return value


def _text(data: Mapping[str, Any], where: str, key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} {value!r} is no text in {dict(data)}")
    return value
