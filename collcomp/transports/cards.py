"""What ranks say of their GPUs before they use NCCL."""

from __future__ import annotations

import struct

import numpy as np

from collcomp import devices
from collcomp.transports.nccl import nccl

__all__ = ["Card"]

# NCCL's version (0 where there is none), and which GPU it is.
_CARD = struct.Struct("<Q56s")


class Card:
    """Of one rank, in bytes."""

    NBYTES = _CARD.size

    @staticmethod
    def own() -> np.ndarray:
        """That of the calling rank."""
        module = nccl()
        version = module.get_version() if module else 0
        return np.frombuffer(_CARD.pack(version, devices.identity().encode()[:56]), np.uint8).copy()

    @staticmethod
    def problem(cards: np.ndarray) -> str:
        """Why ranks with these cards, one a row, cannot use NCCL; empty where they can."""
        told = [_CARD.unpack(card.tobytes()) for card in cards]
        without = [rank for rank, (version, _) in enumerate(told) if not version]
        if without:
            return f"NCCL is not installed on rank {without[0]}"
        places: dict[bytes, int] = {}
        for rank, (_, place) in enumerate(told):
            if place in places:
                return f"ranks {places[place]} and {rank} share a GPU, which NCCL refuses"
            places[place] = rank
        return ""
