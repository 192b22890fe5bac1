"""``collcomp plan``: what a topology promises, which way to sum is best, and the files that make programs do it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from collcomp.advice import advice
from collcomp.calibration import codec_cost
from collcomp.codecs import as_codec
from collcomp.errors import CollcompError
from collcomp.planner.cost import CodecCost, load_model
from collcomp.planner.layout import VARIABLE
from collcomp.policies import Auto
from collcomp.units import check_file, parse_nbytes

__all__ = ["add_options", "run"]

_SIZES = "64K,1M,16M,256M"
#: Exact bounds of larger topologies take minutes.
_MOST_BOUND = 512
_MOST_TREES = _MOST_RINGS = 32
#: Several rings are told of where they are so many times as fast as one.
_WORTH = 1.01
_UNITS = ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "topology",
        metavar="TOPOLOGY",
        help="a YAML or JSON file (mpi_configs/topologies has some), NCCL's or hwloc's XML, or what "
        "'nvidia-smi topo -m' printed",
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="on the first N devices (default: one on each)")
    parser.add_argument(
        "--interleaved",
        action="store_true",
        help="ranks go round the hosts, as by 'mpirun --map-by node', or round what hangs on the same switches where "
        "each host has one device",
    )
    parser.add_argument("--size", default=_SIZES, help="sizes of messages, between commas (default: %(default)s)")
    parser.add_argument(
        "--codec", default="auto:error=0.1", help="auto, auto:error=E or auto:CODEC|CODEC (default: %(default)s)"
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="codecs are as fast as this file of 'collcomp calibrate' says; as here"
    )
    parser.add_argument("--layout", metavar="FILE", help=f"write the layout of the ranks, for {VARIABLE}")
    parser.add_argument(
        "--hosts",
        metavar="PREFIX",
        help="number ranks along the planned ring: write rankfile and hostfiles that put each on its host, and the "
        "device of each (a launcher knows hosts only); the layout is that of the new numbers",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the topology and how busy the planned ring keeps it")


def run(options: argparse.Namespace) -> int:
    """Plan and print; the exit status."""
    try:
        from collcomp.planner.prospects import prospects
        from collcomp.planner.topology.files import read_topology
    except ImportError as error:
        raise CollcompError(f"collcomp plan needs {error.name}: pip install 'collcomp[plan]'") from None

    check_file(options.layout, "--layout")
    check_file(f"{options.hosts}.rankfile" if options.hosts else None, "--hosts")
    check_file(options.plot, "--plot")
    sizes = [parse_nbytes(text, "--size") for text in options.size.split(",")]
    policy = Auto.from_spec(options.codec)
    topology = read_topology(options.topology)
    devices = _devices(topology, options.ranks, options.interleaved)
    outlook = prospects(topology, devices, _codec_costs(policy, options.calibration))
    policy.learn(outlook.model)
    print("\n".join(_facts(outlook)))
    print(f"# codecs as fast as {options.calibration or 'on this machine'}; predicted, not measured:")
    print(advice(policy, "allreduce", sizes))
    if options.layout:
        layout = outlook.layout
        if options.hosts:  # its numbers are new
            layout = layout.among(layout.order)
        layout.save(options.layout)
        print(f"# layout written to {options.layout}; export {VARIABLE}={options.layout}")
    if options.hosts:
        print(f"# written: {', '.join(_write_hosts(options.hosts, outlook))}")
    if options.plot:
        _plot(options.plot, outlook)
        print(f"# drawn to {options.plot}")
    return 0


def _devices(topology: Any, ranks: int | None, interleaved: bool) -> list[str]:
    if ranks is not None and not 2 <= ranks <= len(topology.devices):
        raise ValueError(f"--ranks: {ranks}, {topology.name!r} has room for 2 to {len(topology.devices)}")
    devices = list(topology.devices)[:ranks]
    if not interleaved:
        return devices
    used = set(devices)
    groups = [[device for device in of_host if device in used] for of_host in topology.hosts.values()]
    if all(len(group) <= 1 for group in groups):
        from collcomp.planner.rings.start import Clusters

        groups = [[name for name in side if name in used] for side in Clusters(topology, devices).sides]
    rounds = max(map(len, groups))
    return [group[i] for i in range(rounds) for group in groups if i < len(group)]


def _codec_costs(policy: Auto, path: str | None) -> dict[str, CodecCost]:
    known: dict[str, CodecCost] = {}
    if path is not None:
        known = dict(load_model(path, "--calibration").codecs)
    return {codec.spec: known.get(codec.spec) or codec_cost(as_codec(codec)) for codec in policy.codecs}


def _facts(outlook: Any) -> list[str]:
    topology, ring, tiers = outlook.topology, outlook.ring, outlook.tiers
    size, hosts = len(outlook.devices), {topology.nodes[device].host or device for device in outlook.devices}
    unit, unit_name = next((unit for unit in _UNITS if ring.busbw >= unit[0]), _UNITS[-1])
    lines = [f"# {topology.name}: {size} ranks, hosts: {len(hosts)}; bandwidths in {unit_name}"]
    if size == len(topology.devices) <= _MOST_BOUND:
        from collcomp.planner.forests.optimum import optimum

        best = optimum(topology, "allreduce")
        lines.append(f"# cut bound: allreduce algbw {best.algbw / unit:.2f}, busbw {best.busbw / unit:.2f}")
        if size <= _MOST_TREES:
            lines.append(_trees(topology, unit))
        lines.append(
            f"# best ring: busbw {ring.busbw / unit:.2f}, {_percent(best.busbw / ring.busbw - 1)} above the cut bound"
        )
    else:
        lines.append(f"# best ring: busbw {ring.busbw / unit:.2f}")
    lines[-1] += (
        f", {_percent(ring.gap)} above a bound for rings; busiest link {' -> '.join(ring.busiest or ('none',))}"
    )
    if size <= _MOST_RINGS and ring.seconds_per_byte > 0:
        lines += _several(outlook, unit)
    if tiers is not None:
        lines.append(f"# two tiers: {len(tiers.groups)} groups of {len(tiers.groups[0])} by {tiers.kind}")
    return lines


def _several(outlook: Any, unit: float) -> list[str]:
    from collcomp.planner.rings.sets import ring_set

    rings = ring_set(outlook.topology, outlook.devices, one=outlook.ring)
    if rings.busbw <= outlook.ring.busbw * _WORTH:
        return []
    return [
        f"# {len(rings.orders)} rings side by side: busbw {rings.busbw / unit:.2f}, "
        f"{_percent(rings.gap)} above a bound for sets of rings"
    ]


def _trees(topology: Any, unit: float) -> str:
    from collcomp.planner.forests.forest import forest
    from collcomp.planner.forests.optimum import optimum

    try:
        bound, trees = optimum(topology), forest(topology)
    except ValueError as error:
        return f"# no trees: {error}"
    trees.check()
    return (
        f"# trees, checked: all-gather algbw {trees.algbw / unit:.2f} of {bound.algbw / unit:.2f}, "
        f"gap {_percent(float(trees.gap(bound)))}"
    )


def _write_hosts(prefix: str, outlook: Any) -> list[str]:
    from collcomp.planner.flows import export

    nodes = outlook.topology.nodes
    hosts = export.in_order(outlook.layout, [nodes[device].host or device for device in outlook.devices])
    hydra, rankmap = export.mpich_rankmap(hosts)
    files = {
        "rankfile": export.openmpi_rankfile(hosts),
        "slurm": export.slurm_hostfile(hosts),
        "hydra": hydra,
        "rankmap": rankmap + "\n",
        "devices": export.device_of_ranks(hosts, export.in_order(outlook.layout, outlook.devices)),
    }
    for name, text in files.items():
        Path(f"{prefix}.{name}").write_text(text)
    return [f"{prefix}.{name}" for name in files]


def _plot(path: str, outlook: Any) -> None:
    try:
        from collcomp.planner.topology.plot import plot_topology
    except ImportError as error:
        raise CollcompError(f"--plot needs {error.name}: pip install 'collcomp[bench]'") from None
    from collcomp.planner.rings.order import edges_of
    from collcomp.planner.topology.routes import Routes

    routes = Routes(outlook.topology)
    edges = [edge for edge in edges_of([outlook.devices[rank] for rank in outlook.ring.order]) if edge[0] != edge[1]]
    busy = routes.loads(edges) / routes.bandwidths
    use = dict(zip(routes.links, (busy / busy.max()).tolist(), strict=True))
    plot_topology(outlook.topology, path, use)


def _percent(gap: float) -> str:
    return f"{100 * gap:.1f}%"
