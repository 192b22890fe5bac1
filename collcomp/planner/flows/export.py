"""Plans in the words of launchers and libraries: orders of ranks, settings, source ports of queue pairs."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields

from collcomp.planner.flows.ecmp import hops
from collcomp.planner.flows.hashing import ROCE_PORT, FiveTuple, SwitchHash, source_ports_for
from collcomp.planner.flows.table import FlowTable, Placement, Way
from collcomp.planner.layout import Layout

__all__ = [
    "QueuePair",
    "device_of_ranks",
    "in_order",
    "mpich_rankmap",
    "mpich_settings",
    "nccl_settings",
    "openmpi_rankfile",
    "openmpi_sequence",
    "queue_pairs",
    "queue_pairs_csv",
    "queue_pairs_json",
    "slurm_hostfile",
    "ucx_settings",
]


def in_order(layout: Layout, hosts: Sequence[str]) -> list[str]:
    """The host of each rank, when ranks are numbered in the order of a layout's ring.

    Parameters
    ----------
    layout : Layout
    hosts : sequence of str
        The host of each rank as they are numbered now.

    Raises
    ------
    ValueError
        If there is not one for each rank.
    """
    if len(hosts) != layout.size:
        raise ValueError(f"hosts: {len(hosts)} for {layout.size} ranks")
    return [hosts[rank] for rank in layout.order]


# ---------------------------------------------------------------------- where ranks run


def openmpi_rankfile(hosts: Sequence[str]) -> str:
    """For ``mpirun --map-by rankfile:file=FILE`` of Open MPI 5 (``--rankfile FILE`` before): a core for each rank."""
    taken: Counter[str] = Counter()
    lines = []
    for rank, host in enumerate(hosts):
        lines.append(f"rank {rank}={host} slot={taken[host]}\n")
        taken[host] += 1
    return "".join(lines)


def openmpi_sequence(hosts: Sequence[str]) -> str:
    """For ``mpirun --map-by seq --hostfile FILE`` of Open MPI: rank by rank, bound to no core."""
    return _lines(hosts)


def mpich_rankmap(hosts: Sequence[str]) -> tuple[str, str]:
    """For ``mpiexec -f FILE -rankmap MAP`` of MPICH's Hydra: the file, and the map, which has a host for each rank."""
    ranks = Counter(hosts)
    index = {host: i for i, host in enumerate(ranks)}
    return _lines(f"{host}:{count}" for host, count in ranks.items()), ",".join(str(index[host]) for host in hosts)


def slurm_hostfile(hosts: Sequence[str]) -> str:
    """For ``SLURM_HOSTFILE=FILE srun --distribution=arbitrary``: the host of each task in turn."""
    return _lines(hosts)


def device_of_ranks(hosts: Sequence[str], devices: Sequence[str]) -> str:
    """Rank, host and device in each line, by tabs: launchers place ranks on hosts, and programs choose devices."""
    return _lines(f"{rank}\t{host}\t{device}" for rank, (host, device) in enumerate(zip(hosts, devices, strict=True)))


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


# ---------------------------------------------------------------------- settings of libraries


def nccl_settings(
    *,
    interfaces: Sequence[str] = (),
    adapters: Sequence[str] = (),
    cross_nic: bool | None = None,
    queue_pairs: int | None = None,
    gid_index: int | None = None,
    algorithm: str | None = None,
    protocol: str | None = None,
) -> str:
    """Lines of ``nccl.conf``, or of a file of environment variables, with what the plan says and nothing else.

    The names are those of NCCL's user guide, *Environment Variables*.

    Parameters
    ----------
    interfaces : sequence of str
        For sockets, by their exact names.
    adapters : sequence of str
        InfiniBand or RoCE adapters, with ports or without: ``"mlx5_0:1"``.
    cross_nic : bool, optional
        Whether a ring may leave a host by another card than that by which it came; False where cards are on separate
        networks.
    queue_pairs : int, optional
        Of each connection. The bytes of a message are split over them, as plans of this package have it.
    gid_index : int, optional
    algorithm, protocol : str, optional
        ``"Ring"``, ``"Tree"``; ``"Simple"``, ``"LL128"``, ...
    """
    return _settings(
        {
            "NCCL_SOCKET_IFNAME": "=" + ",".join(interfaces) if interfaces else None,
            "NCCL_IB_HCA": "=" + ",".join(adapters) if adapters else None,
            "NCCL_CROSS_NIC": None if cross_nic is None else int(cross_nic),
            "NCCL_IB_QPS_PER_CONNECTION": queue_pairs,
            "NCCL_IB_SPLIT_DATA_ON_QPS": None if queue_pairs is None else 1,
            "NCCL_IB_GID_INDEX": gid_index,
            "NCCL_ALGO": algorithm,
            "NCCL_PROTO": protocol,
        }
    )


def ucx_settings(devices: Sequence[str], *, rails: int | None = None) -> str:
    """Environment variables of UCX.

    Parameters
    ----------
    devices : sequence of str
        ``"mlx5_0:1"``, ``"eth0"``.
    rails : int, optional
        Over how many of them a large message is spread.
    """
    return _settings({"UCX_NET_DEVICES": ",".join(devices) or None, "UCX_MAX_RNDV_RAILS": rails})


def mpich_settings(algorithms: Mapping[str, str]) -> str:
    """Environment variables of MPICH that choose an algorithm for collectives.

    They count only where MPICH's device does not choose before them, so that is switched off for the same collectives.

    Parameters
    ----------
    algorithms : mapping of str to str
        By name of the collective: ``{"allreduce": "ring"}``.
    """
    settings: dict[str, object] = {"MPIR_CVAR_DEVICE_COLLECTIVES": "percoll"} if algorithms else {}
    for collective, algorithm in algorithms.items():
        settings[f"MPIR_CVAR_{collective.upper()}_DEVICE_COLLECTIVE"] = 0
        settings[f"MPIR_CVAR_{collective.upper()}_INTRA_ALGORITHM"] = algorithm
    return _settings(settings)


def _settings(settings: Mapping[str, object]) -> str:
    return _lines(f"{name}={value}" for name, value in settings.items() if value is not None)


# ---------------------------------------------------------------------- queue pairs


@dataclass(frozen=True)
class QueuePair:
    """A connection of a plan, and the UDP source port that leads it there.

    Attributes
    ----------
    job : str
    source, dest : str
        Ports of network cards.
    source_address, dest_address : str
    source_port, dest_port : int
    share : float
        Of the bytes of its flow.
    via : str
        Switches along its way.
    """

    job: str
    source: str
    dest: str
    source_address: str
    dest_address: str
    source_port: int
    dest_port: int
    share: float
    via: str


def queue_pairs(table: FlowTable, addresses: Mapping[str, str], switches: Mapping[str, SwitchHash]) -> list[QueuePair]:
    """Every queue pair of a table, with a source port that makes each switch choose the planned link.

    Parameters
    ----------
    table : FlowTable
    addresses : mapping of str to str
        IPv4 addresses of the ends.
    switches : mapping of str to SwitchHash
        How switches hash; those without a choice may be missing.

    Raises
    ------
    ValueError
        If an address or a switch is missing, or a way is broken.
    CollcompError
        If no source port does it.
    """
    taken: dict[tuple[str, str], list[tuple[Placement, Way, float]]] = {}
    for placement in table.placements:
        for way, share in zip(placement.ways, placement.shares, strict=True):
            names = table.paths.nodes(way)
            taken.setdefault((names[0], names[-1]), []).append((placement, way, share))
    pairs = []
    for (source, dest), members in taken.items():
        for end in (source, dest):
            if end not in addresses:
                raise ValueError(f"addresses: that of {end!r} is missing")
        packet = FiveTuple(addresses[source], addresses[dest])
        plans = [hops(table, placement.flow, way, switches) for placement, way, _ in members]
        for (placement, way, share), port in zip(members, source_ports_for(packet, plans), strict=True):
            via = " ".join(table.paths.nodes(way)[1:-1])
            pairs.append(
                QueuePair(placement.flow.job, source, dest, packet.source, packet.dest, port, ROCE_PORT, share, via)
            )
    return pairs


def queue_pairs_csv(pairs: Iterable[QueuePair]) -> str:
    """A line of titles, and one for each queue pair."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(QueuePair)])
    writer.writerows(astuple(pair) for pair in pairs)
    return text.getvalue()


def queue_pairs_json(pairs: Iterable[QueuePair]) -> str:
    """A list of objects."""
    return json.dumps([asdict(pair) for pair in pairs], indent=1) + "\n"
