r"""The testbed's two-tier network: leaf switches, spine switches above them, and several ways between two leaves.

    rank 0    rank 1    rank 2    rank 3        one shaped link each, to their leaf
       \        /          \        /
        leaf 0              leaf 1
          |   \____    ____/   |                one shaped link from each leaf to each spine
          |    ____\__/____     |
        spine 1             spine 2

Every rank has one address for each spine: ``10.p.0.x`` is path p, and whatever goes to it crosses spine p. What goes
to its address of path 0, ``10.0.0.x``, takes the spine that its leaf chooses by a hash of both addresses and ports, as
switches do (equal-cost multipath): every connection another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..rates import parse_rate

if TYPE_CHECKING:
    from collcomp.planner.topology import Topology

__all__ = ["HASHED", "TwoTier", "rank_address"]

HASHED = 0
"""The path whose spine is chosen by a hash."""

_MOST_SWITCHES = 64
_PLACES: dict[str, Callable[[int, int, int], int]] = {
    "block": lambda rank, ranks, leaves: rank * leaves // ranks,
    "interleaved": lambda rank, ranks, leaves: rank % leaves,
}


def rank_address(rank: int, path: int = HASHED) -> str:
    """IPv4 address of a rank, by which it is reached on a path; a testbed without spines has path 0 only."""
    return f"10.{path}.0.{rank + 1}"


@dataclass(frozen=True)
class TwoTier:
    """What to build.

    Attributes
    ----------
    leaves : int
    uplinks : tuple of float
        Bytes per second, each way, of every leaf's link to each spine; as many as there are spines.
    place : {"block", "interleaved"}
        Which leaf a rank is at: neighbours at the same one, or dealt out in turn.

    Raises
    ------
    ValueError
        Something cannot be built.
    """

    leaves: int
    uplinks: tuple[float, ...]
    place: str = "block"

    def __post_init__(self) -> None:
        for name, count in (("leaves", self.leaves), ("spines", self.spines)):
            if not 1 <= count <= _MOST_SWITCHES:
                raise ValueError(f"{name}: {count} is not 1 to {_MOST_SWITCHES}")
        if self.place not in _PLACES:
            raise ValueError(f"place: {self.place!r} is not {' or '.join(_PLACES)}")

    @property
    def spines(self) -> int:
        """Number of spines; paths are 1 to so many, and `HASHED`."""
        return len(self.uplinks)

    def leaf(self, rank: int, ranks: int) -> int:
        """The leaf of a rank."""
        return _PLACES[self.place](rank, ranks, self.leaves)

    def groups(self, ranks: int) -> tuple[tuple[int, ...], ...]:
        """The ranks of each leaf that has any."""
        groups = [tuple(r for r in range(ranks) if self.leaf(r, ranks) == leaf) for leaf in range(self.leaves)]
        return tuple(group for group in groups if group)

    @classmethod
    def parse(cls, text: str) -> TwoTier:
        """What ``"leaves=2,spines=2,uplink=200mbit"`` says.

        ``uplink=200mbit/100mbit`` gives the links to each spine a rate of their own; ``place=interleaved`` deals ranks
        out to the leaves in turn.

        Raises
        ------
        ValueError
            Naming the word that is wrong.

        Examples
        --------
        >>> TwoTier.parse("leaves=2,spines=2,uplink=200mbit/100mbit,place=interleaved")
        TwoTier(leaves=2, uplinks=(25000000.0, 12500000.0), place='interleaved')
        """
        words = dict.fromkeys(("leaves", "spines", "uplink", "place"), "")
        for word in text.split(","):
            name, equals, value = word.partition("=")
            if not equals or name not in words or words[name]:
                raise ValueError(
                    f"fabric: {word!r} of {text!r} is not understood; write leaves=2,spines=2,uplink=200mbit"
                    " and maybe place=interleaved"
                )
            words[name] = value
        counts = {name: words[name] for name in ("leaves", "spines")}
        for name, value in counts.items():
            if not value.isdecimal():
                raise ValueError(f"fabric: {name}={value} is no number of switches in {text!r}")
        rates = [parse_rate(rate, "fabric: uplink") for rate in words["uplink"].split("/")]
        spines = int(counts["spines"])
        if len(rates) not in (1, spines):
            raise ValueError(f"fabric: uplink={words['uplink']} has {len(rates)} rates, spines are {spines}")
        try:
            return cls(int(counts["leaves"]), tuple(rates * spines if len(rates) == 1 else rates),
                       words["place"] or "block")  # fmt: skip
        except ValueError as error:
            raise ValueError(f"fabric: {error}") from None

    def topology(self, ranks: int, rate: float) -> Topology:
        """The same for the planner: what it plans is what is built.

        Parameters
        ----------
        ranks : int
        rate : float
            Bytes per second of every rank's link, each way.
        """
        from collcomp.planner.topology import DEVICE, SWITCH, Link, Node, Topology

        hosts = [Node(f"rank{rank}", DEVICE, host=f"host{rank}") for rank in range(ranks)]
        switches = [Node(f"leaf{i}", SWITCH) for i in range(self.leaves)]
        switches += [Node(f"spine{i + 1}", SWITCH) for i in range(self.spines)]
        cables = [(f"rank{rank}", f"leaf{self.leaf(rank, ranks)}", rate) for rank in range(ranks)]
        cables += [(f"leaf{i}", f"spine{j + 1}", self.uplinks[j]) for i in range(self.leaves)
                   for j in range(self.spines)]  # fmt: skip
        links = [Link(*ends, bandwidth) for a, b, bandwidth in cables for ends in ((a, b), (b, a))]
        return Topology("two-tier testbed", [*hosts, *switches], links)
