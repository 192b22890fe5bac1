"""PyTorch's distributed tests with the backend that the environment variable COLLCOMP_TESTED names.

It is ``gloo``, ``collcomp``, or ``collcomp+planes``: with every operation and message by the codec ``planes``.

They say by name what a backend can do: many decorators skip a test unless ``BACKEND == "gloo"``. So the module that
defines them is imported as for gloo, and every test that gloo runs is run with the tested backend, too. Groups are then
made by the tested backend's own name, as programs do it.
"""

import multiprocessing
import os
from typing import Any

os.environ["BACKEND"] = "gloo"
os.environ.setdefault("INIT_METHOD", "file://")  # the tests' own setUp says which file
os.environ.setdefault("WORLD_SIZE", "2")

from torch.testing._internal.distributed import distributed_test as pytorch

import collcomp.torch
from collcomp.torch.options import _COLLECTIVES as OPERATIONS
from collcomp.torch.options import Options


class Name(str):
    """A backend's name, and as good as gloo's: test bodies ask for that as well, ``if BACKEND == "gloo"``."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other == "gloo" or str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


_backend, _, _codec = os.environ["COLLCOMP_TESTED"].partition("+")
pytorch.BACKEND = Name(_backend)
if _codec:  # the environment can ask for sums only
    _options = Options(dict.fromkeys(OPERATIONS, _codec), min_nbytes=0)
    Options.from_environment = lambda: _options  # type: ignore[method-assign]

# Ranks are forked by a server that has imported this and done nothing else. Two that import it themselves take 4 s.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([pytorch.__name__, collcomp.torch.__name__])


class TestDistributed(pytorch.TestDistBackend, pytorch.DistributedTest._DistTestBase):
    def setUp(self) -> None:
        super().setUp()

        def process(*, target: Any, args: tuple, **options: Any) -> multiprocessing.process.BaseProcess:
            return _context.Process(target=_rank, args=(dict(os.environ), target, *args), **options)

        self._start_processes(process)


def _rank(environment: dict[str, str], target: Any, *args: Any, **options: Any) -> None:
    os.environ.update(environment)
    pytorch.INIT_METHOD = environment["INIT_METHOD"]
    target(*args, **options)
