"""Run mpi4py's own tests with `collcomp.mpi.Comm` in place of its communicators.

``mpirun -n 3 python tests/mpi/mpi4py_suite.py FOLDER [MODULE ...]``, where FOLDER is ``test`` of an unpacked source
distribution of mpi4py (``pip download --no-deps --no-binary mpi4py mpi4py``). ``--native`` runs them as they are, to
compare with.
"""

import argparse
import sys
import unittest

MODULES = [
    "test_cco_buf", "test_cco_nb_buf", "test_cco_vec", "test_cco_nb_vec", "test_cco_pr_buf", "test_cco_obj",
    "test_comm", "test_comm_topo", "test_p2p_buf", "test_p2p_obj", "test_p2p_buf_matched", "test_request",
    "test_attributes", "test_exceptions", "test_msgspec", "test_msgzero", "test_subclass", "test_threads",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--native", action="store_true")
    options = parser.parse_args()

    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if not options.native:
        from collcomp.mpi import Comm

        MPI.COMM_WORLD, MPI.COMM_SELF = Comm(world), Comm(MPI.COMM_SELF)
    sys.path.insert(0, options.folder)
    hidden = {name: sys.modules.get(name) for name in ("cupy", "numba")}
    sys.modules.update(dict.fromkeys(hidden))  # mpi4py's tests would look for a GPU with them
    suite = unittest.defaultTestLoader.loadTestsFromNames(options.modules)
    for name, module in hidden.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module
    result = unittest.TextTestRunner(verbosity=0, failfast=False).run(suite)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
