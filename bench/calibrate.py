"""``collcomp calibrate``: measure the pairs of ranks, the codecs and the collectives, and write them to a file.

The file is a `Topology` that has what was measured beside it: ``pairs`` (seconds of latency and bytes per second
between each two ranks, one pair at a time), ``effective`` (bytes of messages per second over the ranks' links with each
codec, its own time counted) and ``calibration`` (a `CostModel`). `COLLCOMP_CALIBRATION` names it to programs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from collcomp.calibration import THOROUGH
from collcomp.planner.cost import CALIBRATION, CostModel
from collcomp.planner.topology import DEVICE, SWITCH, Link, Node, Topology
from collcomp.policies import Auto

from .arguments import check_file
from .launch import under_launcher
from .osu import COLLECTIVES
from .ranks import World, launch_or_run, progress_bar, show

__all__ = ["add_options", "add_what", "measured", "on_ranks", "parse_collectives", "run"]

_CODECS = "auto:error=0.1"

_PING_NBYTES, _STREAM_NBYTES = 8, 1 << 20
_PINGS, _STREAMS = 20, 3
_NETWORK = "network"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--out", metavar="FILE", default="topology.json", help="what to write (default: %(default)s)")
    add_what(parser)


def add_what(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument(
        "--codec", default=_CODECS, help="auto, auto:error=E or auto:CODEC|CODEC (default: %(default)s)"
    )
    parser.add_argument("--collectives", default="allreduce", help="between commas (default: %(default)s)")


def on_ranks(name: str, argv: Sequence[str], options: argparse.Namespace, body: Callable[[World], int]) -> int:
    """Run `body` on the ranks that `options` ask for, 4 through shared memory by default; the exit status.

    Raises
    ------
    ValueError
        For a number of ranks among which nothing is sent.
    """
    ranks = World.here().size if under_launcher() else options.ranks
    if ranks is not None and ranks < 2:
        raise ValueError(f"--ranks: {ranks} sends nothing, 2 at least do")
    return launch_or_run(
        [name, *argv],
        body,
        ranks=options.ranks,
        default_ranks=4,
        link=options.link,
        default_link="shm",
        mpi=options.mpi,
    )


def parse_collectives(text: str) -> list[str]:
    """Names of collectives between commas; `ValueError` for others."""
    known = [name for name, cls in COLLECTIVES.items() if not cls.point_to_point]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"--collectives: {name!r} is none of {', '.join(known)}")
    return names


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure and write; the exit status."""
    collectives = parse_collectives(options.collectives)
    Auto.from_spec(options.codec)
    check_file(options.out, "--out")

    def body(world: World) -> int:
        from collcomp.transports.shared import this_machine

        model = measured(world, options.codec, collectives)
        pairs = _pairs(world)
        hosts = world.comm.allgather(this_machine())
        if world.rank == 0:
            _write(options.out, _topology(world, model, pairs["latency"], hosts), model, pairs)
            print(_summary(model))
            print(f"# written to {options.out}; export {CALIBRATION}={options.out} spares programs measuring it again")
        return 0

    return on_ranks("calibrate", argv, options, body)


def measured(world: World, spec: str, collectives: Sequence[str]) -> CostModel:
    """What the ranks' collectives cost, thoroughly measured."""
    from collcomp.mpi import Comm

    comm = Comm(world.comm, codec=spec)
    with progress_bar(world, len(collectives), "measuring") as bar:
        for collective in collectives:
            model = comm.calibrate(collective, THOROUGH)
            bar.update(1)
        show(bar, f"# {world.mpi_version}, {world.size} ranks, link {world.link}; bandwidths in MB/s")
    return model


def _pairs(world: World) -> dict[str, list[list[float]]]:
    """Latency and bandwidth between each two ranks, while the others wait."""
    comm, rank = world.comm, world.rank
    ping, stream = np.zeros(_PING_NBYTES, np.uint8), np.zeros(_STREAM_NBYTES, np.uint8)
    latency, bandwidth = np.zeros((2, world.size, world.size))
    for a in range(world.size):
        for b in range(a + 1, world.size):
            comm.Barrier()
            if rank in (a, b):
                peer = a + b - rank
                latency[a, b] = latency[b, a] = _seconds(comm, peer, rank == a, ping, _PINGS) / 2
                bandwidth[a, b] = bandwidth[b, a] = 2 * stream.size / _seconds(comm, peer, rank == a, stream, _STREAMS)
    from mpi4py import MPI

    for matrix in (latency, bandwidth):  # what both ranks of a pair measured, and nobody else
        comm.Allreduce(MPI.IN_PLACE, matrix, MPI.MAX)
    return {"latency": latency.tolist(), "bandwidth": bandwidth.tolist()}


def _seconds(comm: Any, peer: int, first: bool, message: np.ndarray, repeats: int) -> float:
    """Median seconds there and back."""
    times = []
    for _ in range(repeats + 1):  # the first one connects
        started = time.perf_counter()
        if first:
            comm.Send(message, peer)
            comm.Recv(message, peer)
        else:
            comm.Recv(message, peer)
            comm.Send(message, peer)
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


def _topology(
    world: World, model: CostModel, latencies: Sequence[Sequence[float]], machines: Sequence[str]
) -> Topology:
    """A star: what ranks can send while all do, whatever lies between them."""
    hosts = {machine: f"host{i}" for i, machine in enumerate(dict.fromkeys(machines))}
    devices = [Node(f"rank{rank}", DEVICE, host=hosts[machine]) for rank, machine in enumerate(machines)]
    rate, delay = model.network.bandwidth, float(np.median([one for row in latencies for one in row if one])) / 2
    links = [Link(*ends, rate, delay) for node in devices for ends in ((node.name, _NETWORK), (_NETWORK, node.name))]
    return Topology(f"measured: {world.link}", [*devices, Node(_NETWORK, SWITCH)], links)


def _effective(model: CostModel) -> dict[str, float]:
    """Bytes of messages per second over a rank's link, with each codec."""
    return {
        spec: 4 / max(cost.nbytes / model.network.bandwidth, cost.encode, cost.decode)
        for spec, cost in model.codecs.items()
    }


def _write(path: str, topology: Topology, model: CostModel, pairs: dict[str, list[list[float]]]) -> None:
    data = topology.to_dict() | {"pairs": pairs, "effective": _effective(model), "calibration": model.to_dict()}
    with open(path, "w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")


def _summary(model: CostModel) -> str:
    network = model.network
    lines = [f"# links: {network.bandwidth / 1e6:.0f} MB/s while all send, {network.latency * 1e6:.0f} us a step"]
    lines.append(f"{'codec':<28}{'ratio':>7}{'encode':>9}{'decode':>9}{'effective':>11}")
    effective = _effective(model)
    for spec, cost in model.codecs.items():
        encode = f"{4e-6 / cost.encode:.0f}" if cost.encode else "-"
        decode = f"{4e-6 / cost.decode:.0f}"
        lines.append(f"{spec:<28}{4 / cost.nbytes:>7.2f}{encode:>9}{decode:>9}{effective[spec] / 1e6:>11.0f}")
    return "\n".join(lines)
