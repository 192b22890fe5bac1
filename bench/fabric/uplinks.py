"""The links between leaves and spines, from within a rank: what they have carried, and another rate for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..namespaces import inside, link_bytes, shape
from .network import downlink_name, uplink_name
from .spec import TwoTier

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = ["SWITCHES_VARIABLE", "Uplinks"]

SWITCHES_VARIABLE = "COLLCOMP_SWITCH_NAMESPACES"
"""Environment variable with the paths of the namespaces of leaves and spines, in that order, between colons."""


class Uplinks:
    """All links between the leaves and the spines of a `TwoTier`.

    Parameters
    ----------
    fabric : TwoTier
        What this rank was launched in.

    Raises
    ------
    KeyError
        This process is in no such network.
    """

    def __init__(self, fabric: TwoTier) -> None:
        paths = os.environ[SWITCHES_VARIABLE].split(":")
        self._leaves, self._spines = paths[: fabric.leaves], paths[fabric.leaves :]

    def sent(self) -> np.ndarray:
        """Bytes that each leaf has sent to each spine, headers included.

        Returns
        -------
        ndarray of int64, shape (leaves, spines)
        """
        sent = np.zeros((len(self._leaves), len(self._spines)), np.int64)
        for i, leaf in enumerate(self._leaves):
            with _inside(leaf):
                for j in range(len(self._spines)):
                    sent[i, j] = link_bytes(uplink_name(j)).sent
        return sent

    def set_rate(self, leaf: int, spine: int, rate: float) -> None:
        """Give the link between a leaf and a spine, both counted from 0, another rate in bytes per second, each way."""
        with _inside(self._leaves[leaf]) as ip:
            shape(ip, uplink_name(spine), rate, again=True)
        with _inside(self._spines[spine]) as ip:
            shape(ip, downlink_name(leaf), rate, again=True)


@contextmanager
def _inside(path: str) -> Iterator[IPRoute]:
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(namespace) as ip:
            yield ip
    finally:
        os.close(namespace)
