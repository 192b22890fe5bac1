"""How kernels are compiled: lazily, without the GIL, and cached on disk until any kernel source changes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

__all__ = ["INLINED", "inlined", "kernel", "source_stamp"]

# No fastmath: results are the same bits on every CPU, with or without fused multiply-add, and NaN is kept.
# No reference counts: a kernel never allocates, and counting each slice costs as much as encoding a block.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}
#: Options of what is compiled into its callers (`numba.extending.overload` takes them as `jit_options`).
INLINED: Any = {"forceinline": True, **_OPTIONS}


def source_stamp(folder: Path) -> str:
    """Digest of all Python sources below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_STAMP = source_stamp(Path(__file__).parent)
_FOLDER = "collcomp-"


class _Cache(FunctionCache):
    """numba's cache on disk, safe for kernels in several files and for several processes.

    numba drops a cached kernel when its own file changes, but not when a helper in another file does; and it numbers
    the files of compiled code anew then, so that a process may take an old file for the one that another process is
    about to write. All kernels are therefore cached in a folder that is named by the digest of all sources. And numba
    saves an index and then the code that it points to without a lock: of two processes that compile different types of
    one kernel at once, one could be given the other's code.
    """

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        self._cache_path = str(Path(self._cache_path, _FOLDER + _STAMP[:16]))
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, _STAMP)

    def save_overload(self, signature: Any, data: Any) -> None:
        path = Path(self._cache_path)
        if not path.exists():
            for old in path.parent.glob(_FOLDER + "*"):
                shutil.rmtree(old, ignore_errors=True)
        path.mkdir(parents=True, exist_ok=True)
        with open(path / "lock", "w") as lock, contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)  # some network file systems have no locks: then nothing is saved
            super().save_overload(signature, data)


def kernel(function: Callable) -> Any:
    """Compile `function` when it is called with new types, and cache the result where numba may write."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    # RuntimeError: neither the package's folder nor the user's cache folder can be written.
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return dispatcher


def inlined(function: Callable) -> Any:
    """Compile `function` into the kernels that call it."""
    return numba.njit(**INLINED)(function)
