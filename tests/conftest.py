"""Puts this folder on the import path, where `helpers` is."""

import os

import pytest
from gpu import has_gpu
from hypothesis import settings

# Where there is no GPU, numba runs the kernels for it in Python; it has to know before it is imported.
if not has_gpu():
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

# Machines that run tests are shared and slow at times: examples have no deadline of their own.
settings.register_profile("collcomp", deadline=None, print_blob=True)
settings.load_profile("collcomp")


def pytest_collection_modifyitems(items):
    """The longest tests first: at the end they would keep one core busy while the others wait.

    The first test with a switch may have to compile its kernels, or wait for another worker that does.
    """
    for item in items:
        if hasattr(item.module, "serving"):
            item.add_marker(pytest.mark.timeout(300))
    items.sort(key=lambda item: item.path.name != "test_mpirun.py")
