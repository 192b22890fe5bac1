"""Ranks over TCP as threads of this process, or driven by hand: what tests of that transport share."""

import threading
import time

import numpy as np
from helpers import PATIENCE_S

HOST = "127.0.0.1"


class DictStore:
    """A store for threads."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()

    def set(self, key, value):
        with self.changed:
            self.values[key] = value.encode()
            self.changed.notify_all()

    def get(self, key):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, PATIENCE_S / 2):
                raise KeyError(key)
            return self.values[key]


def together(functions):
    """What each function returned or raised, each in a thread of its own."""
    found = [None] * len(functions)

    def main(i, function):
        try:
            found[i] = function()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=main, args=pair, daemon=True) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for i, thread in enumerate(threads):
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"thread {i} hangs; the others: {found}"
    return found


def message(nbytes, value=1):
    return np.full(nbytes, value, np.uint8)


def room(nbytes):
    return np.zeros(nbytes, np.uint8)


def wait(transport, *requests):
    """Wait for all of `requests`."""
    open_requests = list(requests)
    end = time.monotonic() + PATIENCE_S
    while open_requests:
        done = transport.wait_some(open_requests, 1)
        open_requests = [request for i, request in enumerate(open_requests) if i not in done]
        assert time.monotonic() < end, f"{len(open_requests)} requests are open"


def drive(transports, until):
    """Have all transports make progress until `until` is true."""
    end = time.monotonic() + PATIENCE_S
    while not until():
        for transport in transports:
            transport.wait_some([], 0)
        assert time.monotonic() < end


def meet(transports):
    """Connect all; afterwards nobody listens any more."""
    drive(transports, lambda: all(transport._listener is None for transport in transports))
