"""Completion times by SimGrid: reads an instance as JSON from standard input, writes seconds as JSON.

Runs under whatever interpreter has SimGrid's Python module, so it uses nothing of this package:
``python3 simgrid_reference.py < instance.json``. See `collcomp.bench.planning.instances` for what an instance is.
"""

from __future__ import annotations

import json
import os
import sys

import simgrid

# Max-min fair sharing and nothing else: no TCP window, no share that depends on latency, no acknowledgements.
_SETTINGS = (
    "network/model:CM02",
    "network/TCP-gamma:0",
    "network/weight-S:0",
    "network/crosstraffic:0",
    "network/bandwidth-factor:1",
    "network/latency-factor:1",
    "maxmin/precision:1e-12",
    "surf/precision:1e-12",
    "contexts/factory:thread",
)


def main() -> None:
    """Simulate one instance."""
    instance = json.load(sys.stdin)
    answers = os.dup(1)
    os.dup2(2, 1)  # SimGrid's own messages are none of them
    finished = _simulate(instance)
    with os.fdopen(answers, "w") as file:
        json.dump(finished, file)


def _simulate(instance: dict) -> list:
    engine = simgrid.Engine(["simgrid", "--log=root.thres:critical", *(f"--cfg={setting}" for setting in _SETTINGS)])
    zone = simgrid.NetZone.create_full_zone("zone")
    links = [zone.create_link(f"l{i}", capacity).seal() for i, capacity in enumerate(instance["capacities"])]
    transfers = instance["transfers"]
    ends = []
    for i, transfer in enumerate(transfers):
        source, dest = (zone.create_host(f"{end}{i}", 1e9) for end in "sd")
        passes = [simgrid.LinkInRoute(links[link]) for link in transfer["links"]]
        zone.add_route(source.netpoint, dest.netpoint, None, None, passes, False)
        ends.append((source, dest))
    zone.seal()

    finished = [0.0] * len(transfers)
    missing = [len(transfer["after"]) for transfer in transfers]
    followers = [[j for j, other in enumerate(transfers) if i in other["after"]] for i in range(len(transfers))]

    def begin(i: int) -> None:
        simgrid.Actor.create(f"transfer{i}", ends[i][0], send, i)

    def send(i: int) -> None:
        if transfers[i]["start"] > simgrid.Engine.clock:
            simgrid.this_actor.sleep_until(transfers[i]["start"])
        simgrid.Comm.sendto(*ends[i], transfers[i]["nbytes"])
        finished[i] = simgrid.Engine.clock
        for j in followers[i]:
            missing[j] -= 1
            if not missing[j]:
                begin(j)

    def change() -> None:
        for time, link, capacity in sorted(instance["changes"]):
            simgrid.this_actor.sleep_until(time)
            links[link].set_bandwidth(capacity)

    if instance["changes"]:
        simgrid.Actor.create("changes", ends[0][0], change)
    for i, count in enumerate(missing):
        if not count:
            begin(i)
    engine.run()
    return finished


if __name__ == "__main__":
    main()
