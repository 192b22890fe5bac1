"""What every process started by `launch` runs first: `python enter.py command...`.

It ties the process to its parent's life, takes a rank of the testbed into its network namespace, and becomes the
command. It is run by its path under `python -I -S` and imports the standard library only, for it starts once a rank.
"""

import ctypes
import os
import signal
import sys

NAMESPACES_VARIABLE = "COLLCOMP_NAMESPACES"
"""Environment variable with the paths of the ranks' network namespaces, in rank order, between colons."""

RANK_VARIABLES = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Environment variables in which launchers tell a process its rank."""

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


def launched_rank() -> int | None:
    """Rank that an MPI launcher gave to this process, or None if none did."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), None)


def die_with_parent() -> None:
    """Have the kernel end this process by SIGKILL when its parent ends, however that ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def join_network(namespace: int) -> None:
    """Move this process into the network namespace behind an open descriptor."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):  # os.setns needs Python 3.12
        code = ctypes.get_errno()
        raise OSError(code, f"cannot join a network namespace: {os.strerror(code)}")


def guarded(command: list[str]) -> list[str]:
    """Command line that runs this module, then `command`."""
    return [sys.executable, "-I", "-S", __file__, *command]


def main() -> None:
    """Become the command in `sys.argv`, as the launcher or as one of its ranks."""
    die_with_parent()
    rank = launched_rank()
    if rank is not None and NAMESPACES_VARIABLE in os.environ:
        namespace = os.open(os.environ[NAMESPACES_VARIABLE].split(":")[rank], os.O_RDONLY)
        join_network(namespace)
        os.close(namespace)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
