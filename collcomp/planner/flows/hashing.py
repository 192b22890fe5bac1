"""How switches choose among equal ways by hashing headers, and source ports that make them choose the planned one."""

from __future__ import annotations

import binascii
import ipaddress
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from collcomp.errors import CollcompError

__all__ = ["METHODS", "ROCE_PORT", "ROCE_SOURCE_PORTS", "FiveTuple", "Hop", "SwitchHash", "source_ports_for"]

#: UDP destination port of RoCEv2.
ROCE_PORT = 4791
#: UDP source ports that RoCEv2 uses (RFC 6335's dynamic ports; ``rdma_flow_label_to_udp_sport`` of Linux).
ROCE_SOURCE_PORTS = range(0xC000, 0x10000)

_UDP = 17


@dataclass(frozen=True)
class FiveTuple:
    """What switches hash of a packet.

    Attributes
    ----------
    source, dest : str
        IPv4 addresses.
    source_port, dest_port : int
    protocol : int
        17 is UDP.
    """

    source: str
    dest: str
    source_port: int = ROCE_SOURCE_PORTS[0]
    dest_port: int = ROCE_PORT
    protocol: int = _UDP

    def to_bytes(self) -> bytes:
        """Addresses, protocol and ports as they follow one another in the headers."""
        ports = struct.pack(">BHH", self.protocol, self.source_port, self.dest_port)
        return _packed(self.source) + _packed(self.dest) + ports


@lru_cache(1 << 16)
def _packed(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed


def _crc32(data: bytes) -> int:
    return zlib.crc32(data)


def _crc16(data: bytes) -> int:
    return binascii.crc_hqx(data, 0xFFFF)


def _xor(data: bytes) -> int:
    padded = data[:-5] + b"\0" + data[-5:]  # the protocol is a byte; ports stand at even places
    folded = 0
    for (word,) in struct.iter_unpack(">H", padded):
        folded ^= word
    return folded


#: Hashes of bytes: CRC-32 (IEEE 802.3), CRC-16 (CCITT, started with ones), and all 16-bit words by exclusive or.
METHODS: Mapping[str, Callable[[bytes], int]] = MappingProxyType({"crc32": _crc32, "crc16": _crc16, "xor": _xor})


@dataclass(frozen=True)
class SwitchHash:
    """How one switch chooses.

    These hashes are linear: a seed that is hashed too changes the values of all packets by the same bits. Two switches
    that look at the same bits of the same hash therefore choose alike whatever their seeds, or opposite (polarisation):
    where several of them are on a way, let each look at other bits, or hash otherwise.

    Attributes
    ----------
    method : {"crc32", "crc16", "xor"}
    seed : int
        32 bits, hashed before the headers.
    shift : int
        How many of the lowest bits it does not look at.

    Raises
    ------
    ValueError
        If the method is unknown, or a number is out of range.
    """

    method: str = "crc32"
    seed: int = 0
    shift: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: {self.method!r} is none of {', '.join(METHODS)}")
        if not 0 <= self.seed < 1 << 32 or not 0 <= self.shift < 32:
            raise ValueError(f"seed, shift: {self.seed} and {self.shift} are not of 32 bits")

    def value(self, packet: FiveTuple) -> int:
        """The hash of a packet."""
        return METHODS[self.method](struct.pack(">I", self.seed) + packet.to_bytes()) >> self.shift

    def values(self, packet: FiveTuple) -> np.ndarray:
        """`value` for every source port that the packet could have, an array of 65536."""
        none = replace(packet, source_port=0)
        whole = METHODS[self.method](struct.pack(">I", self.seed) + none.to_bytes())
        return (np.int64(whole) ^ _port_bits(self.method)) >> self.shift


@lru_cache
def _port_bits(method: str) -> np.ndarray:
    """Which bits of the hash a source port changes; by linearity the same for whatever else is hashed."""
    packet = FiveTuple("0.0.0.0", "0.0.0.0", 0)
    nothing = METHODS[method](bytes(4) + packet.to_bytes())
    bits = np.zeros(1, np.int64)
    for bit in range(16):
        changed = METHODS[method](bytes(4) + replace(packet, source_port=1 << bit).to_bytes()) ^ nothing
        bits = np.concatenate((bits, bits ^ changed))
    return bits


@dataclass(frozen=True)
class Hop:
    """A switch that has a choice.

    Attributes
    ----------
    switch : SwitchHash
    ways : int
        How many.
    way : int
        The one that is wanted: the hash modulo `ways`.
    """

    switch: SwitchHash
    ways: int
    way: int


def source_ports_for(
    packet: FiveTuple, plans: Sequence[Sequence[Hop]], allowed: Sequence[int] = ROCE_SOURCE_PORTS
) -> list[int]:
    """A UDP source port for each queue pair between two ports, so that every switch chooses what is planned.

    C4P finds them by probing; where the hash is known, it can be turned round.

    Parameters
    ----------
    packet : FiveTuple
        Addresses and destination port; its source port does not count.
    plans : sequence of sequence of Hop
        For each queue pair the choices along its way.
    allowed : sequence of int, default 0xC000 to 0xFFFF

    Returns
    -------
    list of int
        All different.

    Raises
    ------
    CollcompError
        If no port is left that does it.
    """
    candidates = np.asarray(allowed, np.int64)
    taken: set[int] = set()
    ports = []
    for i, plan in enumerate(plans):
        fits = np.ones(len(candidates), bool)
        for hop in plan:
            fits &= hop.switch.values(packet)[candidates] % hop.ways == hop.way
        port = next((port for port in candidates[fits].tolist() if port not in taken), None)
        if port is None:
            raise CollcompError(
                f"no source port is left that leads queue pair {i} from {packet.source} to {packet.dest} over "
                f"{[(hop.switch, hop.way) for hop in plan]}; switches that hash alike cannot choose independently"
            )
        taken.add(port)
        ports.append(port)
    return ports
