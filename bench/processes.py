"""Waiting for a child process, and taking it along when this process is told to end."""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator

__all__ = ["sigterm_raises", "stop", "wait"]

# Seconds that a process gets to end by itself before it is killed.
_GRACE_SECONDS = 5


def wait(process: subprocess.Popen) -> int:
    """Exit code of a process as shells have it, 128 + n where signal n ended it; it ends with this process."""
    with sigterm_raises():
        try:
            code = process.wait()
        finally:
            stop(process)
    return code if code >= 0 else 128 - code


def stop(process: subprocess.Popen) -> None:
    """End a process, by SIGTERM if that is enough."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # its own children follow: the kernel sends them SIGKILL when their parent is gone
        process.wait()


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that `finally` clauses run; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum, frame):
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
