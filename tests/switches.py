"""Switches for tests: in a thread of this process, and as processes."""

import contextlib
import fcntl
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from collcomp.switch.client import SwitchClient
from collcomp.switch.process import SwitchProcess
from collcomp.switch.programs import PROGRAMS

#: A switch that starts for the first time compiles its kernels.
READY_S = 100


@functools.cache
def compile_kernels():
    """Have all kernels on disk before clocks run: the first process compiles, the others wait for it."""
    with open(Path(tempfile.gettempdir(), f"collcomp-tests-{os.getuid()}"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        switch = Serving()
        SwitchClient(switch.address, 1, 0, 1, deadline=READY_S, check=lambda: None).close()
        switch.stop()


class Serving:
    """A switch that a thread of this process looks after."""

    def __init__(self, program="exact", port=0, **options):
        self.process = SwitchProcess("127.0.0.1", port, PROGRAMS[program], **options)
        self.port = self.process.address[1]
        self.address = f"127.0.0.1:{self.port}"
        self.error = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        try:
            self.process.serve(done=self._ended.is_set)
        except BaseException as error:
            self.error = error

    @property
    def counts(self):
        """What it has counted, by name."""
        found = re.findall(r"([a-z ]+?) (\d+)(?:, |$)", self.process.report())
        return {name: int(count) for name, count in found}

    def jobs(self):
        """Ranks that have joined, by job; its thread may be changing them."""
        while True:
            with contextlib.suppress(RuntimeError):
                return self.process.switch.jobs()

    def stop(self):
        """End it; fails where it ended by itself."""
        self._ended.set()
        self._thread.join(READY_S)
        assert not self._thread.is_alive()
        self.process.close()
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def serving(*args, **options):
    """A `Serving` for a while."""
    compile_kernels()
    switch = Serving(*args, **options)
    try:
        yield switch
    finally:
        switch.stop()


@contextlib.contextmanager
def command(*options):
    """A process of ``collcomp switch``, which is ended at last; its `address` is what it listens on."""
    compile_kernels()
    process = subprocess.Popen(
        [sys.executable, "-m", "collcomp", "switch", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        if line.startswith("compiling"):
            line = process.stdout.readline()
        match = re.match(r"listening on (\S+:\d+)\b", line)
        assert match, line + process.communicate(timeout=READY_S)[0]
        process.address = match[1]
        yield process
    finally:
        process.kill()
        process.communicate(timeout=READY_S)


def end(process, number=signal.SIGTERM):
    """Tell a `command` to end; what it said, its exit status checked."""
    process.send_signal(number)
    output = process.communicate(timeout=READY_S)[0]
    assert process.returncode == 0, output
    return output
