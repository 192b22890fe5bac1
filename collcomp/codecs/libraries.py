"""Compression libraries that need not be installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

__all__ = ["check_library", "has_library", "load_library"]


@functools.cache
def has_library(name: str | None) -> bool:
    """Whether module `name` is installed; None is what a codec names that needs none."""
    return name is None or importlib.util.find_spec(name) is not None


def check_library(codec: str, name: str) -> None:
    """`ImportError` that tells how to install module `name`, unless it is."""
    if not has_library(name):
        raise ImportError(f"codec: {codec!r} needs {name}, which is not installed; pip install 'collcomp[codecs]'")


@functools.cache
def load_library(name: str) -> ModuleType:
    """Module `name`, imported when it is first used."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # numcodecs ends with ValueError beside a zfpy of unexpected version
        raise ImportError(f"codec: {name} is installed, but importing it fails: {error}") from error
