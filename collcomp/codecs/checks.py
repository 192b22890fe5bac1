"""Checks of codec parameters; every message names the parameter and its value."""

from __future__ import annotations

import math
import numbers
from typing import Any

__all__ = ["as_number", "check_choice", "check_flag", "check_integer", "check_number", "check_ratio"]


def check_integer(name: str, value: Any, low: int, multiple: int = 1) -> None:
    """`TypeError` unless `value` is an integer, `ValueError` unless it is >= `low` and a multiple of `multiple`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < low or value % multiple:
        rule = f" and a multiple of {multiple}" if multiple > 1 else ""
        raise ValueError(f"{name}: expected an integer >= {low}{rule}, got {value!r}")


def as_number(name: str, value: Any) -> float:
    """`value` as a float; `TypeError` unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def check_number(name: str, value: Any, low: float) -> None:
    """`TypeError` unless `value` is a number, `ValueError` unless it is finite and >= `low`."""
    if not low <= as_number(name, value) < math.inf:
        raise ValueError(f"{name}: expected a finite number >= {low}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """`TypeError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """`ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_ratio(name: str, value: Any) -> None:
    """`TypeError` unless `value` is a number, `ValueError` unless it is above 0 and at most 1."""
    if not 0 < as_number(name, value) <= 1:
        raise ValueError(f"{name}: expected a number above 0 and at most 1, got {value!r}")
