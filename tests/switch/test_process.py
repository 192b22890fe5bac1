"""``collcomp switch``: processes, alone and as a tree, and their command line."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import BF16, F32, F64, outcomes, run, same_bits
from switches import READY_S, command, end, serving

from collcomp import Communicator
from collcomp.__main__ import main
from collcomp.errors import CollcompError, TransportError
from collcomp.switch.process import SwitchProcess
from collcomp.switch.programs import PROGRAMS


def near(size, count, dtype=F32):
    """Operands whose sum is exact in float64."""
    generator = np.random.default_rng([size, count])
    return [(generator.integers(-(1 << 20), 1 << 20, count) / 2.0**12).astype(dtype) for _ in range(size)]


def far(size, count, dtype=F32):
    """Operands whose exponents are too far apart for 64 bits; each sum has one large operand that goes away."""
    xs = near(size, count, dtype)
    large = xs[0].dtype.type(2.0**100)
    xs[0][::3], xs[-1][::3] = large, -large
    return xs


def exact_sum(xs):
    """Their sum, rounded once; two large operands cancel."""
    wide = [np.where(np.abs(x.astype(F64)) > 2.0**90, 0, x.astype(F64)) for x in xs]
    return np.sum(wide, axis=0).astype(xs[0].dtype)


def allreduce(comm, xs, op="sum", **how):
    x = xs[comm.rank]
    how = {"codec": "identity", **how}
    comm.allreduce(x, result := np.empty_like(x), op, algorithm="switched", **how)
    return result


# ---------------------------------------------------------------------- one process


def test_it_serves_and_reports_what_it_did():
    with command("--listen", "127.0.0.1:0", "--loss", "0.05", "--seed", "1", "--slots", "40") as process:
        for xs in (near(2, 100_000), near(3, 1000, BF16)):
            assert same_bits(*run(len(xs), allreduce, xs, switch=process.address), exact_sum(xs))
        output = end(process)
    assert output.startswith("switch: received ")
    assert " results " in output
    assert " lost " in output
    assert len(output.splitlines()) == 1


def test_it_ends_with_packets_still_coming():
    with command("--listen", "127.0.0.1:0") as process:
        host, port = process.address.split(":")
        ended = threading.Event()

        def flood():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                while not ended.is_set():
                    made.sendto(bytes(500), (host, int(port)))

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        time.sleep(0.2)
        try:
            output = end(process, signal.SIGINT)
        finally:
            ended.set()
            thread.join(READY_S)
    assert "malformed" in output


def test_killed_in_the_middle():
    """All ranks are told by the operating system that nobody is there, or that others gave up."""
    with command("--listen", "127.0.0.1:0") as process:
        started = threading.Barrier(3)

        def program(comm):
            xs = near(2, 1000)
            allreduce(comm, xs)
            started.wait(60)
            for _ in range(100_000):
                allreduce(comm, xs)

        found = []
        ranks = threading.Thread(target=lambda: found.extend(outcomes(2, program, switch=process.address)), daemon=True)
        ranks.start()
        started.wait(60)
        time.sleep(0.1)
        process.kill()
        ranks.join(60)
    assert len(found) == 2
    assert all(isinstance(error, CollcompError) for error in found)
    assert any(isinstance(error, TransportError) and "nothing listens there" in str(error) for error in found)


def test_an_interrupted_rank_ends_soon():
    """Ctrl-C reaches a rank that waits for others."""
    source = """
import signal, sys
from collcomp.switch.client import SwitchClient
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
print("joining", flush=True)
SwitchClient(sys.argv[1], 7, 0, 2, deadline=100.0, check=lambda: None)
"""
    with serving() as switch:
        rank = subprocess.Popen(
            [sys.executable, "-c", source, switch.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert rank.stdout.readline() == "joining\n"
            while 7 not in switch.jobs():
                assert rank.poll() is None
                time.sleep(0.01)
            rank.send_signal(signal.SIGINT)
            _, errors = rank.communicate(timeout=60)
        finally:
            rank.kill()
            rank.communicate()
        assert "KeyboardInterrupt" in errors
        while switch.jobs():  # it has left
            time.sleep(0.01)


def test_a_program_that_ends_leaves():
    """Without closing anything."""
    source = """
import sys, numpy as np, threading
import collcomp
def rank_main(comm):
    x = np.ones(10, np.float32)
    comm.allreduce(x, result := np.empty_like(x), algorithm="switched")
    assert (result == 2).all()
comms = collcomp.local.communicators(2, switch=sys.argv[1])
threads = [threading.Thread(target=rank_main, args=(comm,)) for comm in comms]
[thread.start() for thread in threads]
"""
    with serving() as switch:
        subprocess.run([sys.executable, "-c", source, switch.address], check=True, timeout=READY_S)
        assert switch.counts["results"] == 1
        end_s = time.monotonic() + 60
        while switch.jobs():
            assert time.monotonic() < end_s
            time.sleep(0.01)


def test_small_buffers_are_told():
    source = """
import sys
from collcomp.switch import datagrams
datagrams._set_buffer = lambda made, force, option, nbytes: made.setsockopt(1, option, 100_000)
from collcomp import Communicator
from collcomp.__main__ import main
sys.exit(main(["switch", "--listen", "127.0.0.1:0"]))
"""
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        process.terminate()
        rest = process.communicate(timeout=READY_S)[0]
    finally:
        process.kill()
        process.communicate()
    assert lines[0].startswith("listening on ")
    assert "only 195 KiB of packets can wait (net.core.rmem_max)" in lines[1]
    assert rest == "switch: no packets\n"


def test_closing_twice():
    process = SwitchProcess("127.0.0.1", 0, PROGRAMS["exact"])
    process.close()
    process.close()


# ---------------------------------------------------------------------- the command line


def said(capsys, *options):
    """Exit status, and what went to standard output and error."""
    try:
        status = main(["switch", *options])
    except SystemExit as ending:
        status = ending.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help(capsys):
    status, output, errors = said(capsys, "--help")
    assert (status, errors) == (0, "")
    for option in ("--listen", "--program", "--slots", "--payload", "--loss", "--seed", "--parent", "--ranks"):
        assert option in output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--listen", "here"], "listen: 'here' is no HOST:PORT"),
        (["--listen", "127.0.0.1:70000"], "listen: '127.0.0.1:70000' is no HOST:PORT"),
        (["--listen", ":5000"], "listen: ':5000' is no HOST:PORT"),
        (["--listen", "127.0.0.1:0", "--loss", "1"], "loss: 1.0 is no share of packets"),
        (["--listen", "127.0.0.1:0", "--loss", "-0.1"], "loss: -0.1 is no share of packets"),
        (["--listen", "127.0.0.1:0", "--loss", "nan"], "loss: nan is no share of packets"),
        (["--listen", "127.0.0.1:0", "--slots", "0"], "slots: 0 are too few"),
        (["--listen", "127.0.0.1:0", "--slots", "-3"], "slots: -3 are too few"),
        (["--listen", "127.0.0.1:0", "--payload", "7"], "payload: 7 bytes, 8 to 8192 are possible"),
        (["--listen", "127.0.0.1:0", "--payload", "10000"], "payload: 10000 bytes, 8 to 8192 are possible"),
        (["--listen", "127.0.0.1:0", "--seed", "-1"], "seed: -1 is not between 0 and 2**63"),
        (["--listen", "127.0.0.1:0", "--ranks", "2"], "ranks: to be given with the switch above"),
        (["--listen", "127.0.0.1:0", "--parent", "127.0.0.1:5000"], "ranks: to be given with the switch above"),
        (["--listen", "127.0.0.1:0", "--parent", "127.0.0.1:5000", "--ranks", "0"], "ranks: 0 are too few"),
        (["--listen", "127.0.0.1:0", "--parent", "127.0.0.1:0", "--ranks", "2"], "parent: '127.0.0.1:0' is no HOST"),
    ],
)
def test_wrong_options(capsys, options, text):
    status, output, errors = said(capsys, *options)
    assert (status, output) == (2, "")
    assert errors.startswith(f"collcomp: {text}")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "--listen"),
        (["--listen", "127.0.0.1:0", "--program", "magic"], "invalid choice: 'magic'"),
        (["--listen", "127.0.0.1:0", "--loss", "some"], "invalid float value: 'some'"),
        (["--listen", "127.0.0.1:0", "--slots", "2.5"], "invalid int value: '2.5'"),
    ],
)
def test_options_that_are_none(capsys, options, text):
    status, output, errors = said(capsys, *options)
    assert (status, output) == (2, "")
    assert text in errors


@pytest.mark.parametrize(
    ("host", "text"),
    [("192.0.2.1", "cannot listen on 192.0.2.1"), ("no-such-host.invalid", "cannot listen on no-such-host.invalid")],
)
def test_addresses_that_are_elsewhere(capsys, host, text):
    status, output, errors = said(capsys, "--listen", f"{host}:0")
    assert (status, output) == (1, "")
    assert errors.startswith(f"collcomp: {text}")
    assert len(errors.splitlines()) == 1


def test_a_port_that_is_taken(capsys):
    with serving() as switch:
        status, output, errors = said(capsys, "--listen", switch.address)
    assert (status, output) == (1, "")
    assert errors == f"collcomp: cannot listen on {switch.address} (UDP): Address already in use\n"


# ---------------------------------------------------------------------- trees


@pytest.fixture(scope="module", params=[0.0, 0.03], ids=["safe", "lossy"])
def tree(request):
    """A switch above two that have three ranks and two; the ranks' addresses."""
    loss = {"loss": request.param, "seed": 2}
    with serving(**loss) as spine:
        above = {"parent": ("127.0.0.1", spine.port), **loss}
        with serving(ranks_below=3, **above) as left, serving(ranks_below=2, **above) as right:
            yield spine, left, right


def over(addresses, program, **options):
    """What `program` returned or raised on ranks that each have a switch of their own."""

    def main_of(comm):
        # The switch is the only setting of `communicators` that is the same for all.
        comm = Communicator(comm._transport, mailbox=comm.messages._transport, switch=addresses[comm.rank], **options)
        try:
            return program(comm)
        finally:
            comm._switch.close()

    return outcomes(len(addresses), main_of)


def over_tree(tree, program):
    _, left, right = tree
    return over([left.address] * 3 + [right.address] * 2, program, deadline=50.0)


def test_a_tree_sums_as_one_switch(tree):
    cases = [near(5, 20_001), far(5, 20_001), near(5, 3, BF16), far(5, 501, BF16), near(5, 0)]
    integers = [np.arange(30_000, dtype=np.int16) * (rank + 3) for rank in range(5)]

    def program(comm):
        results = [allreduce(comm, xs) for xs in cases]
        return [*results, allreduce(comm, integers), allreduce(comm, integers, "max")]

    found = over_tree(tree, program)
    errors = [outcome for outcome in found if isinstance(outcome, BaseException)]
    assert not errors, errors
    expected = [*map(exact_sum, cases), np.sum(integers, axis=0, dtype=np.int16), np.max(integers, axis=0)]
    for number, wanted in enumerate(expected):
        assert same_bits(wanted, *(results[number] for results in found)), number


def test_a_tree_tells_errors(tree):
    """To the ranks of the other leaf, too; then it goes on."""

    def program(comm):
        texts = []
        for turn in range(2):
            count = 1000 + (comm.rank == 4 and turn == 0) + (comm.rank == 1 and turn == 1)
            try:
                allreduce(comm, [np.ones(count, F32)] * 5)
            except CollcompError as error:
                texts.append(str(error))
        return texts, allreduce(comm, near(5, 1000))

    found = over_tree(tree, program)
    for outcome in found:
        assert isinstance(outcome, tuple), found
        assert len(outcome[0]) == 2
    assert same_bits(exact_sum(near(5, 1000)), *(result for _, result in found))


def test_a_tree_is_left(tree):
    def program(comm):
        return allreduce(comm, near(5, 10))

    over_tree(tree, program)
    if tree[0].process._threshold == 0:
        end_s = time.monotonic() + 60
        for switch in tree:
            while switch.jobs():
                assert time.monotonic() < end_s
                time.sleep(0.01)


def test_a_leaf_whose_parent_is_not_there():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        with serving(parent=("127.0.0.1", deaf.getsockname()[1]), ranks_below=2) as leaf:
            found = outcomes(2, allreduce, near(2, 10), switch=leaf.address, deadline=1.0)
    assert all(isinstance(error, CollcompError) for error in found)
    assert any("could not be joined within 1 s" in str(error) for error in found)


def test_a_tree_of_processes():
    with contextlib.ExitStack() as stack:
        spine = stack.enter_context(command("--listen", "127.0.0.1:0"))
        leaves = [
            stack.enter_context(command("--listen", "127.0.0.1:0", "--parent", spine.address, "--ranks", "1"))
            for _ in range(2)
        ]
        xs = [near(2, 5000), far(2, 5000)]
        found = over([leaf.address for leaf in leaves], lambda comm: [allreduce(comm, x) for x in xs], deadline=50.0)
        for number, x in enumerate(xs):
            assert same_bits(exact_sum(x), *(results[number] for results in found)), number
        assert all(end(process).startswith("switch: received ") for process in (*leaves, spine))


def test_a_listener_on_every_address_is_refused(capsys):
    status, output, errors = said(capsys, "--listen", "0.0.0.0:0")
    assert (status, output) == (2, "")
    assert "listen: '0.0.0.0' is every address" in errors


def test_a_pool_that_does_not_fit_is_refused(capsys):
    status, _, errors = said(capsys, "--listen", "127.0.0.1:0", "--slots", str(1 << 40))
    assert status == 2
    assert "do not fit this machine's memory" in errors
