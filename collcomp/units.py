"""Sizes and addresses as people write them."""

from __future__ import annotations

import re

__all__ = ["parse_address", "parse_nbytes"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_nbytes(text: str, name: str) -> int:
    """Bytes from ``"512"``, ``"64K"``, ``"1M"``, ``"2G"`` (powers of 1024); `ValueError` names the argument `name`."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{name}: {text!r} is no size; write 512, 64K, 1M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_address(text: str, name: str, *, any_port: bool = False) -> tuple[str, int]:
    """Host and port of ``"HOST:PORT"``, port 0 with `any_port` only; `ValueError` names the argument `name`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not (not any_port) <= int(port) < 1 << 16:
        raise ValueError(f"{name}: {text!r} is no HOST:PORT")
    return host, int(port)
