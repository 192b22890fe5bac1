"""Sizes and addresses as people write them."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["bytes_text", "check_file", "parse_address", "parse_nbytes", "seconds_text"]

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


def check_file(path: str | None, option: str) -> None:
    """Find out now, not at the end of a long run, that a file cannot be written; `ValueError` names the option."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{option}: {path!r} is in no directory that exists")
    if path is not None and Path(path).is_dir():
        raise ValueError(f"{option}: {path!r} is a directory")


def bytes_text(nbytes: int) -> str:
    """Bytes in the units in which sizes are written, where they are whole ones.

    Examples
    --------
    >>> bytes_text(65536), bytes_text(100)
    ('64 KiB', '100 B')
    """
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit and nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


def seconds_text(seconds: float) -> str:
    """Seconds in three digits, in the largest unit of which there is one.

    Examples
    --------
    >>> seconds_text(0.01234), seconds_text(2e-6)
    ('12.3 ms', '2 us')
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"
