"""What a cluster is made of, where that is read from, the shortest ways in it, and pictures of it."""

from collcomp.planner.topology.graph import DEVICE, PORT, SWITCH, Link, Node, Topology

__all__ = ["DEVICE", "PORT", "SWITCH", "Link", "Node", "Topology"]
