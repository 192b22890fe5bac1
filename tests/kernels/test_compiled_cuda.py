"""Kernels for GPUs as a compiler sees them: they compile, and nothing in them rounds otherwise than the CPU's."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAMILIES = sorted(path.stem for path in HERE.glob("*cuda_*.py") if "def launch_all(" in path.read_text())

#: Families that treat doubles otherwise; for the others one type says enough, and compiling takes long.
OF_DOUBLES = ("casts", "fixed_point", "shared_scale", "sparse")


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_contracted_or_widened(family):
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    reals = ["float32", "float64"] if family.endswith(OF_DOUBLES) else ["float32"]
    command = [sys.executable, str(HERE / "compile_cuda.py"), family, *reals]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    kernels = [line for line in lines if "kernel" in line]
    assert len(kernels) >= 2
    real = None
    for line in lines:
        real = line.get("real", real)
        if "kernel" in line:
            assert line["contracted"] == 0, line
            assert not line["spilled"], line
            if real == "float32" and "_in_float64" not in line["kernel"]:
                assert line["doubles"] == 0, line


def test_hardware_and_simulator_have_the_same_primitives():
    """Only one of the two can be imported here."""
    folder = Path(importlib.import_module("collcomp.kernels.cuda").__file__).parent
    hardware, simulated = (
        re.search(r"^__all__ = (\[.*?\])", (folder / name).read_text(), re.MULTILINE | re.DOTALL)
        for name in ("hardware.py", "simulated.py")
    )
    assert ast.literal_eval(hardware[1]) == ast.literal_eval(simulated[1])
