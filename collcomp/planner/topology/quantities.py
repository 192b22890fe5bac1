"""Bandwidths, latencies and series of names as people write them in topology files."""

from __future__ import annotations

import math
import re
from itertools import product

__all__ = ["expand", "parse_bandwidth", "parse_latency"]

_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
#: Names that one series can stand for: more are a slip of the pen, or meant to fill the memory.
_MOST_NAMES = 1 << 20


def parse_bandwidth(value: object, name: str) -> float:
    """Bytes per second from ``"300 GB/s"``, ``"200 Gbit/s"``, ``"200gbit"``, ``"100 Gbps"``, or a number of them.

    Prefixes are powers of 1000. ``B`` is bytes, ``b`` and ``bit`` are bits. YAML reads ``1e9`` as text: so do we, as a
    number. `ValueError` names the argument `name`.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"([\d.eE+-]+)\s*(?:([KMGT]?)(B|b|bit)(?:/s|ps)?)?", value.strip(), re.IGNORECASE)
        if match and (number := _number(match[1])) is not None:
            return number * _PREFIXES[(match[2] or "").upper()] / (1 if match[3] in (None, "B") else 8)
    elif (number := _number(value)) is not None:
        return number
    raise ValueError(f"{name}: {value!r} is no bandwidth; write 300 GB/s, 200 Gbit/s or bytes per second")


def parse_latency(value: object, name: str) -> float:
    """Seconds from ``"2us"``, ``"1.5 ms"``, or a number of them; `ValueError` names the argument `name`."""
    if isinstance(value, str):
        match = re.fullmatch(r"([\d.eE+-]+)\s*([mnuµ]?s)?", value.strip())
        if match and (number := _number(match[1])) is not None:
            return number * _SECONDS[match[2] or "s"]
    elif (number := _number(value)) is not None:
        return number
    raise ValueError(f"{name}: {value!r} is no latency; write 2us, 1.5 ms or seconds")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number < math.inf else None


def expand(series: str, name: str) -> list[str]:
    """The names that ``"host[0-3].gpu[0,2,4-6]"`` stands for, the last brackets counting fastest.

    Numbers keep their leading zeros: ``"n[08-10]"`` is n08, n09, n10. `ValueError` names the argument `name`.
    """
    if re.fullmatch(r"(?:[^\[\]]|\[[\d,\-]+\])+", series) is None:
        raise ValueError(f"{name}: {series!r} is no name; write host3 or host[0-3]")
    parts: list[list[str]] = []
    count = 1
    for text, inside in re.findall(r"([^\[\]]+)|\[([\d,\-]+)\]", series):
        part = [text] if text else _numbers(inside, series, name)
        count *= len(part)
        if count > _MOST_NAMES:
            raise ValueError(f"{name}: {series!r} stands for more than {_MOST_NAMES} names")
        parts.append(part)
    return ["".join(each) for each in product(*parts)]


def _numbers(inside: str, series: str, name: str) -> list[str]:
    numbers: list[str] = []
    for item in inside.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", item)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{name}: {item!r} in {series!r} is no series of numbers; write 0-3")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= _MOST_NAMES:
            raise ValueError(f"{name}: {series!r} stands for more than {_MOST_NAMES} names")
        numbers += (str(i).zfill(len(match[1])) for i in range(first, last + 1))
    return numbers
