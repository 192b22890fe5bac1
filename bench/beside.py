"""A switch process beside a program: `python -m collcomp.bench.beside SWITCH... -- PROGRAM...`.

The switch says `listening on HOST:PORT` on its standard output when it is ready. Then the program starts, with that
address in `COLLCOMP_SWITCH`; when either ends, so does the other, and what else the switch has said is printed. Both
end with this process, however that ends.
"""

import os
import queue
import re
import subprocess
import sys
import threading
from typing import IO

from . import processes
from .enter import guarded

SWITCH_VARIABLE = "COLLCOMP_SWITCH"
"""Environment variable in which programs find the switch's address."""

_LISTENING = re.compile(r"listening on (\S+:\d+)\b")

# A switch that starts for the first time compiles its kernels.
_READY_SECONDS = 120
# A program that fails without its switch gets so long to say how.
_PARTING_SECONDS = 2


def beside_command(switch: list[str], program: list[str]) -> list[str]:
    """Command line that runs `program` with `switch` beside it.

    Parameters
    ----------
    switch, program : list of str
        Command lines; that of the switch has no argument ``--``.

    Returns
    -------
    list of str
        Its exit code is the program's, or 1 where the switch did not start or ended before the program.
    """
    return [sys.executable, "-m", "collcomp.bench.beside", *switch, "--", *program]


def main(argv: list[str] | None = None) -> int:
    """Run both; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--")
    switch = subprocess.Popen(guarded(argv[:cut]), stdout=subprocess.PIPE, text=True)
    assert switch.stdout is not None
    output = _Output(switch.stdout)
    with processes.sigterm_raises():
        try:
            address = output.address.get(timeout=_READY_SECONDS)
            if address is None:
                return _complain(f"the switch ended before it was ready, with exit code {switch.wait()}")
            environment = {**os.environ, SWITCH_VARIABLE: address}
            program = subprocess.Popen(guarded(argv[cut + 1 :]), env=environment)
            threading.Thread(target=_end_with, args=(program, switch), daemon=True).start()
            code = processes.wait(program)
            ended = switch.poll()
        except queue.Empty:
            return _complain(f"the switch was not ready after {_READY_SECONDS} seconds")
        finally:
            processes.stop(switch)
            output.thread.join()
            sys.stdout.write("".join(output.lines))
            sys.stdout.flush()
    if ended is not None:
        return _complain(f"the switch ended before the program, with exit code {ended}")
    return code


def _end_with(program: subprocess.Popen, switch: subprocess.Popen) -> None:
    """End the program when the switch does: its ranks would wait for sums until their deadlines."""
    switch.wait()
    try:
        program.wait(_PARTING_SECONDS)
    except subprocess.TimeoutExpired:
        processes.stop(program)


class _Output:
    """What the switch says, read all the time: a full pipe would stop it."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: list[str] = []
        self.address: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self.thread.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if match := _LISTENING.match(line):
                self.address.put(match[1])
            else:
                self.lines.append(line)
        self.address.put(None)


def _complain(message: str) -> int:
    print(f"collcomp bench: {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
