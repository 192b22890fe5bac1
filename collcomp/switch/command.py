"""``collcomp switch``: a switch in the foreground."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from collcomp.switch.process import BUFFER_NBYTES, SwitchProcess
from collcomp.switch.programs import PROGRAMS
from collcomp.units import parse_address

__all__ = ["add_options", "run"]


# A start that takes longer is explained.
_PATIENCE_S = 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="address for the workers (UDP)")
    parser.add_argument("--program", choices=PROGRAMS, default="exact", help="what it does (default: %(default)s)")
    parser.add_argument("--slots", type=int, help="slots of the pool that jobs share (default: the program's)")
    parser.add_argument("--payload", type=int, metavar="BYTES", help="most bytes of a packet's values (default: 8192)")
    parser.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="drop packets on purpose, both ways")
    parser.add_argument("--seed", type=int, help="of what is dropped")
    parser.add_argument("--parent", metavar="HOST:PORT", help="switch above, which sums what this one has summed")
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks of a job that send here, where there is a parent")


def run(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    host, port = parse_address(options.listen, "listen", any_port=True)
    patience = threading.Timer(
        _PATIENCE_S, print, ["compiling kernels, for the first start only"], {"file": sys.stderr}
    )
    patience.daemon = True
    patience.start()
    try:
        process = SwitchProcess(
            host,
            port,
            PROGRAMS[options.program],
            slots=options.slots,
            payload_nbytes=options.payload,
            parent=None if options.parent is None else parse_address(options.parent, "parent"),
            ranks_below=options.ranks,
            loss=options.loss,
            seed=options.seed,
        )
    finally:
        patience.cancel()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    print(f"listening on {process.address[0]}:{process.address[1]}, program {options.program}", flush=True)
    if process.buffer_nbytes < BUFFER_NBYTES:
        print(
            f"note: only {process.buffer_nbytes >> 10} KiB of packets can wait (net.core.rmem_max); more are lost and "
            "sent again", flush=True,
        )  # fmt: skip
    process.serve(done=ended.is_set)
    print(f"switch: {process.report() or 'no packets'}", flush=True)
    process.close()
    return 0
