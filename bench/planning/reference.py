"""The simulator beside SimGrid, on random instances."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from collcomp.errors import CollcompError

from .instances import random_instance, simulated

__all__ = ["Difference", "by_simgrid", "compare", "find_simgrid"]

#: Environment variable that names the interpreter that has SimGrid.
PYTHON_VARIABLE = "PYTHON_SIMGRID"

_SCRIPT = Path(__file__).with_name("simgrid_reference.py")


@dataclass(frozen=True)
class Difference:
    """What came of one instance.

    Attributes
    ----------
    seed : int
    links, transfers, changes : int
        How many it has.
    relative : float
        Largest difference between two completion times, over SimGrid's.
    seconds, simgrid_seconds : float
        That simulating took; SimGrid's with the start of its process.
    """

    seed: int
    links: int
    transfers: int
    changes: int
    relative: float
    seconds: float
    simgrid_seconds: float


@lru_cache
def find_simgrid() -> str:
    """The interpreter that has SimGrid: that of ``PYTHON_SIMGRID``, this one, or the system's.

    Raises
    ------
    CollcompError
        If none has.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    candidates = [named] if named else [sys.executable, "/usr/bin/python3"]
    for python in candidates:
        try:
            if subprocess.run([python, "-c", "import simgrid"], capture_output=True, check=False).returncode == 0:
                return python
        except OSError:
            continue
    raise CollcompError(
        f"none of {', '.join(candidates)} has SimGrid; install Debian's or Ubuntu's package python3-simgrid, or name "
        f"an interpreter by {PYTHON_VARIABLE}"
    )


def by_simgrid(instance: dict[str, Any]) -> np.ndarray:
    """Completion times by SimGrid, in seconds.

    Raises
    ------
    CollcompError
        If there is no SimGrid, or it failed.
    """
    done = subprocess.run(
        [find_simgrid(), str(_SCRIPT)], input=json.dumps(instance), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CollcompError(f"SimGrid failed with exit code {done.returncode}: {done.stderr[-500:]}")
    return np.array(json.loads(done.stdout))


def compare(seeds: range) -> Iterator[Difference]:
    """Simulate the instance of each seed both ways."""
    for seed in seeds:
        instance = random_instance(seed)
        begun = time.perf_counter()
        expected = by_simgrid(instance)
        between = time.perf_counter()
        got = simulated(instance).finished
        ended = time.perf_counter()
        relative = float((np.abs(got - expected) / expected).max())
        links, transfers, changes = (len(instance[what]) for what in ("capacities", "transfers", "changes"))
        yield Difference(seed, links, transfers, changes, relative, ended - between, between - begun)
