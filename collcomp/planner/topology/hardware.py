"""What links inside a host carry, from what tools tell of them.

The figures are those that NCCL plans with (github.com/NVIDIA/nccl, ``src/graph/topo.h`` and ``topo.cc``): what links
usually attain, less than data sheets promise.
"""

from __future__ import annotations

import re

__all__ = ["nvlink_bandwidth", "pcie_bandwidth", "processor_bandwidth"]

#: Bytes per second of a lane, by its transfers.
_PCIE_LANES = {"2.5": 0.1875e9, "5": 0.375e9, "8": 0.75e9, "16": 1.5e9, "32": 3e9, "64": 6e9}
#: Bytes per second of an NVLink, by the least compute capability of those that have it.
_NVLINKS = ((100, 40.1e9), (90, 20.6e9), (87, 20e9), (86, 12e9), (70, 20e9), (60, 18e9), (0, 20e9))
#: Bytes per second between two Intel processors, by the least model of family 6.
_INTEL_MODELS = ((0xCF, 40e9), (0x8F, 22e9), (0x55, 10e9), (0, 6e9))
#: Bytes per second between two AMD processors, by the least family.
_AMD_FAMILIES = ((0x1A, 32e9), (0x19, 24e9), (0, 16e9))


def pcie_bandwidth(speed: str, width: int) -> float:
    """Bytes per second of a PCIe link of so many lanes, whose speed Linux writes as ``"16.0 GT/s PCIe"``.

    As in NCCL, an unknown speed is that of PCIe 3, and no width is 16 lanes: virtual machines tell neither.
    """
    match = re.match(r"(\d+(?:\.\d+)?) GT/s", speed)
    lane = _PCIE_LANES.get(f"{float(match[1]):g}" if match else "8", _PCIE_LANES["8"])
    return lane * (width or 16)


def nvlink_bandwidth(compute_capability: int) -> float:
    """Bytes per second of one NVLink of a GPU with a compute capability such as 80 or 90."""
    return next(bandwidth for least, bandwidth in _NVLINKS if compute_capability >= least)


def processor_bandwidth(vendor: str, family: int = 0, model: int = 0, arch: str = "x86_64") -> float:
    """Bytes per second between two processors of one host; of unknown ones, the slowest that is known.

    Parameters
    ----------
    vendor : str
        As CPUID has it: "GenuineIntel" or "AuthenticAMD".
    family, model : int
        As ``/proc/cpuinfo`` has them.
    arch : str
        "x86_64", "arm64" or "ppc64".
    """
    if arch.startswith("ppc"):
        return 32e9
    if vendor == "GenuineIntel":
        model = model if family == 6 else 0
        return next(bandwidth for least, bandwidth in _INTEL_MODELS if model >= least)
    if vendor == "AuthenticAMD":
        return next(bandwidth for least, bandwidth in _AMD_FAMILIES if family >= least)
    return 6e9
