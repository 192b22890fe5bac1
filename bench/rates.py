"""Rates of links as network cards have them: bits per second, in powers of ten."""

from __future__ import annotations

import re

__all__ = ["parse_rate"]

_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_MIN_RATE, _MAX_RATE = 1e6 / 8, 32e9 / 8  # bytes per second; tbf counts them in 32 bits


def parse_rate(text: str, name: str, also: str = "") -> float:
    """Bytes per second that a rate such as "200mbit" or "2.5gbit" stands for.

    Parameters
    ----------
    text : str
    name : str
        What the error calls it.
    also : str
        What the error says that it could be as well.

    Raises
    ------
    ValueError
        If it is no rate, or not between 1mbit and 32gbit.

    Examples
    --------
    >>> parse_rate("200mbit", "link")
    25000000.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text)
    if match is None:
        raise ValueError(f"{name} must be {also}a rate such as '200mbit' or '2.5gbit', not {text!r}")
    rate = float(match[1]) * _UNITS[match[2]] / 8
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise ValueError(f"{name} must be 1mbit to 32gbit, not {text!r}")
    return rate
