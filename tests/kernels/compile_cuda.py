"""Compiles kernels for a GPU that need not be there; for each one launched prints what matters of its PTX, in JSON.

``python compile_cuda.py MODULE REAL...``: of a test module whose `launch_all` launches every kernel of a family, for
values of these types.
"""

import importlib
import json
import re
import sys
from pathlib import Path

import numba.cuda.dispatcher
import numpy as np
from numba import cuda, typeof

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from collcomp.kernels.cuda import jit  # noqa: E402 - before any module of kernels takes `launch` from it

_ARCHITECTURE = (8, 0)
_compiled: set = set()


class _Device:
    compute_capability = _ARCHITECTURE
    MULTIPROCESSOR_COUNT = 100


def _compile(function, blocks, *arguments, threads=jit.THREADS):
    signature = tuple(typeof(_host(argument)) for argument in arguments)
    # In float64 one of each name: what is looked for is in float32.
    what = (function, signature) if real is np.float32 else function.py_func.__qualname__
    if what in _compiled:
        return
    _compiled.add(what)
    ptx, _ = cuda.compile_ptx(function.py_func, signature, cc=_ARCHITECTURE)
    print(
        json.dumps(
            {
                "kernel": f"{function.py_func.__qualname__}{signature}",
                "contracted": len(re.findall(r"\bfma\.", ptx)),
                "doubles": len(re.findall(r"\.f64\b", ptx)),
                "spilled": ".local" in ptx,
            }
        )
    )


def _host(argument):
    if isinstance(argument, tuple):
        return tuple(map(_host, argument))
    return argument.get() if hasattr(argument, "__cuda_array_interface__") else argument


if __name__ == "__main__":
    numba.cuda.dispatcher.get_current_device = cuda.get_current_device = lambda: _Device
    jit._device = lambda: 0
    jit.launch = _compile
    module = importlib.import_module(sys.argv[1])
    for real in (getattr(np, name) for name in sys.argv[2:]):
        print(json.dumps({"real": real.__name__}))
        module.launch_all(real)
