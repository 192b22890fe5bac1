"""A text that every machine has: the source of Python's own standard library, as characters."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["ALPHABET", "Text", "standard_library", "symbols"]

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""Characters that have a symbol of their own, their place in it; all others share ``len(ALPHABET)``."""

_SKIPPED = {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
_HELD_OUT = 10  # every tenth file

# By code point; the last entry stands for all that follow.
_SYMBOLS = np.full(129, len(ALPHABET), np.uint8)
_SYMBOLS[[ord(character) for character in ALPHABET]] = np.arange(len(ALPHABET))


class Text(NamedTuple):
    """Symbols (uint8) to train with, and those of other files to validate with."""

    train: np.ndarray
    validation: np.ndarray


def symbols(text: str) -> np.ndarray:
    """Symbols of a text's characters, uint8 of shape (characters,)."""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), "<u4")
    return _SYMBOLS[np.minimum(points, len(_SYMBOLS) - 1)]


def standard_library() -> Text:
    """Python's standard library without its tests; every tenth file, by name, is held out.

    Raises
    ------
    FileNotFoundError
        If this Python has no source of it.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if len(files) < _HELD_OUT:
        raise FileNotFoundError(f"{root} has no source of the standard library to train on")
    files.sort(key=lambda path: path.relative_to(root).as_posix())
    parts = [symbols(path.read_text("utf-8", "replace")) for path in files]
    held_out = parts[::_HELD_OUT]
    del parts[::_HELD_OUT]
    return Text(np.concatenate(parts), np.concatenate(held_out))
