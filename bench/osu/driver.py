"""The measuring loop that all collectives share: native MPI and the codecs in turn, so that noise hits all alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from collcomp import devices
from collcomp.codecs import Codec, Identity
from collcomp.collectives import ALGORITHMS, HIERARCHICAL, NATIVE, REQUIRED, SWITCHED
from collcomp.switch.programs import EXACT, PROGRAMS

from ..arguments import NO_CODEC
from ..ranks import MeasurementError, World
from .collective import Collective
from .layout import groups_for
from .message import ITEMSIZE, values
from .validate import Verdict, can_check, differing, judge

__all__ = ["Row", "Settings", "check_settings", "measure"]

# Time to spend on each codec at each size, where iterations are not given.
_CELL_SECONDS = 1.5
_FEWEST_ITERATIONS, _MOST_ITERATIONS = 3, 1000
_SMALL_NBYTES = 64 << 10
_SMALL_WARMUP, _LARGE_WARMUP = 10, 2
# Counters say more than payload (headers); fewer means that there is another way than the link.
_MUST_CROSS = 0.95
# Algorithms whose bytes no single frame tells: their own count is the bound.
_SIZED_BY_DATA = ("merged", "summed", HIERARCHICAL)


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes
    ----------
    codecs : tuple of Codec or None
        Native MPI (None) is measured whether it is among them or not.
    sizes : tuple of int
    algorithm : str or None
        Of the codecs; each one's default where None.
    iterations : int or None
        As many as take a second or two, 3 at least, where None.
    warmup : int or None
        Calls before that; the last one is checked.
    program : str or None
        Of the switch, where there is one.
    validate : bool
    device : str
        Where buffers lie: ``"cpu"`` or ``"cuda"``. There, what has no codec goes through collcomp, too.
    """

    codecs: tuple[Codec | None, ...]
    sizes: tuple[int, ...]
    algorithm: str | None = None
    iterations: int | None = None
    warmup: int | None = None
    program: str | None = None
    validate: bool = True
    device: str = "cpu"

    @property
    def rows(self) -> list[Codec | None]:
        """What each size is measured with, native MPI first."""
        codecs = [codec for codec in self.codecs if codec is not None]
        if not codecs and self.algorithm not in (None, NATIVE):
            codecs = [Identity()]  # the algorithm itself is what is asked for
        return [None, *codecs]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes
    ----------
    collective, codec, algorithm, mpi : str
    ranks : int
    link : str
    nbytes : int
        Size as `collective` defines it.
    seconds, seconds_native : float
        Median over iterations of the slowest rank, and that of native MPI in the same run.
    bound_seconds : float or None
        The fewest bytes on the busiest link with this algorithm and this codec's frames, over the link's rate; with
        `summed` and `merged`, whose bytes depend on all ranks' values, and `hierarchical`, which sends some raw,
        `wire_bytes` over it.
    wire_bytes : float or None
        Sent by the busiest rank per operation: payload as collcomp records it, or for native MPI what the interface
        counted; None for native MPI where no link is shaped.
    ratio : float
        Bytes that the algorithm would send without compression over `wire_bytes`; 1 for native MPI.
    max_err : float or None
        Largest difference from the result in float64.
    wrong : int or None
        Elements that are further from it than the codec may bring them, or whose bits differ between ranks.
    seconds_avg, seconds_min, seconds_max : float
        Of the slowest rank too.
    iterations : int
    algbw, busbw : float
        Bytes per second; see `collcomp.bench.osu.collective`.
    speedup : float
        `seconds_native` over `seconds`.
    """

    collective: str
    codec: str
    algorithm: str
    mpi: str
    ranks: int
    link: str
    nbytes: int
    seconds: float
    seconds_native: float
    bound_seconds: float | None
    wire_bytes: float | None
    ratio: float
    max_err: float | None
    wrong: int | None
    seconds_avg: float
    seconds_min: float
    seconds_max: float
    iterations: int
    algbw: float
    busbw: float
    speedup: float


@dataclass
class _Trial:
    """What the first calls tell."""

    seconds: float
    algorithm: str
    wire_bytes: float | None
    verdict: Verdict | None


def check_settings(cls: type[Collective], settings: Settings, ranks: int) -> None:
    """Raise a `ValueError` that names the option, before anything is started."""
    if ranks < 2:
        raise ValueError(f"--ranks: {cls.name} needs 2 at least, not {ranks}")
    if cls.point_to_point and ranks != 2:
        raise ValueError(f"--ranks: {cls.name} is between 2 ranks, not {ranks}")
    for option, number, fewest in (("--iterations", settings.iterations, 1), ("--warmup", settings.warmup, 1)):
        if number is not None and number < fewest:
            raise ValueError(f"{option}: {number} is too few, {fewest} at least")
    known = [] if cls.point_to_point else [name for name, table in ALGORITHMS.items() if cls.name in table]
    if settings.algorithm is not None and settings.algorithm not in known:
        hint = f"it can use: {', '.join(known)}" if known else "there is no choice"
        raise ValueError(f"--algorithm: {settings.algorithm!r} cannot do {cls.name}; {hint}")
    if settings.algorithm == HIERARCHICAL:
        groups_for(ranks)
    for codec in settings.rows:
        _check_algorithm(codec, settings)
        if codec is not None and codec.needs_key and settings.validate:
            raise ValueError(
                f"--codec: {codec.spec!r} remembers what it sent before, which repeating one message cannot check; "
                "give --no-validate for its speed, or see 'collcomp bench train'"
            )
        if codec is not None and settings.validate and not can_check(codec):
            raise ValueError(f"--codec: no error bound is known for {codec.spec!r}; give --no-validate")
    most = PROGRAMS[settings.program].most_workers if settings.program is not None else None
    if most is not None and ranks > most:
        raise ValueError(f"--ranks: {ranks} are too many for --program {settings.program}, which takes {most}")
    for nbytes in settings.sizes:
        if cls.divided and nbytes % (ITEMSIZE * ranks):
            raise ValueError(f"--sizes: {nbytes} bytes are no whole number of float32 for each of {ranks} ranks")


def _check_algorithm(codec: Codec | None, settings: Settings) -> None:
    if codec is None or settings.algorithm is None:
        return
    required = REQUIRED.get(settings.algorithm, ())
    if required and not any(getattr(codec, attribute) for attribute in required):
        raise ValueError(
            f"--codec: {codec.spec!r} cannot go by algorithm {settings.algorithm!r}, which needs a codec that is "
            f"{' or '.join(required)}"
        )
    if settings.program not in (None, EXACT.name) and not codec.verbatim:
        raise ValueError(
            f"--codec: {codec.spec!r} cannot go by --program {settings.program}: its rounds need max or or, "
            f"which program {EXACT.name} has"
        )


def measure(world: World, cls: type[Collective], settings: Settings, bar: Any) -> Iterator[Row]:
    """Measure every size with native MPI and each codec, and yield their rows size by size, on all ranks.

    Parameters
    ----------
    world : World
    cls : type of Collective
    settings : Settings
    bar : tqdm
        Of ``len(settings.sizes)``.

    Raises
    ------
    MeasurementError
        If the bytes of a call did not cross a shaped link.
    """
    from collcomp.mpi import Comm

    comm = Comm(world.comm)
    for nbytes in settings.sizes:
        operation = cls(world.rank, world.size, nbytes)
        if settings.device == "cuda":
            operation.move(devices.cupy().asarray)
        trials = [_try(world, comm, operation, codec, settings) for codec in settings.rows]
        estimate = sum(trial.seconds for trial in trials)
        iterations = settings.iterations or int(
            np.clip(_CELL_SECONDS * len(trials) / estimate, _FEWEST_ITERATIONS, _MOST_ITERATIONS)
        )
        times = _time(world, comm, operation, settings, iterations, bar)
        native = float(np.median(times[0]))
        for codec, trial, of_codec in zip(settings.rows, trials, times, strict=True):
            yield _row(world, operation, codec, trial, of_codec, native)


def _caller(
    world: World, comm: Any, cls: type[Collective], codec: Codec | None, settings: Settings
) -> tuple[Any, dict[str, Any]]:
    """The communicator and keywords of a call."""
    if codec is None and settings.device == "cpu":
        return world.comm, {}  # not even through collcomp's face
    if codec is None:  # MPI may not take a device's memory
        return comm, {"codec": Identity() if cls.point_to_point else NO_CODEC}
    how: dict[str, Any] = {"codec": codec}
    if settings.algorithm:
        how["algorithm"] = settings.algorithm
    if codec.needs_key and cls.reduces:
        how["key"] = codec.spec
    return comm, how


def _try(world: World, comm: Any, operation: Collective, codec: Codec | None, settings: Settings) -> _Trial:
    """Warm up, count bytes, and check the last result."""
    caller, how = _caller(world, comm, type(operation), codec, settings)
    calls = settings.warmup or (_SMALL_WARMUP if operation.nbytes <= _SMALL_NBYTES else _LARGE_WARMUP)
    seen = comm.records[-1].sequence if len(comm.records) else -1
    sent = world.sent_bytes() or 0
    for _ in range(calls):
        operation.reset()
        world.comm.Barrier()
        started = time.perf_counter()
        operation.call(caller, **how)
        devices.wait_for(operation.recv)
        seconds = time.perf_counter() - started
    sent_since = world.sent_bytes()
    counted = None if sent_since is None else (sent_since - sent) / calls
    records = [record for record in comm.records if record.sequence > seen]
    algorithm = NATIVE if codec is None else world.comm.bcast(records[0].algorithm if records else None)
    recorded = None if codec is None else sum(record.wire_nbytes or 0 for record in records) / calls
    wire_bytes = _busiest(world, operation, algorithm, recorded, counted)
    summed_by = settings.program or algorithm if algorithm == SWITCHED else algorithm
    verdict = None
    if settings.validate:
        operation.move(devices.host_copy)
        verdict = _check(world, operation, codec or Identity(), summed_by)
        if settings.device == "cuda":
            operation.move(devices.cupy().asarray)
    return _Trial(world.largest(seconds), algorithm, wire_bytes, verdict)


def _busiest(
    world: World, operation: Collective, algorithm: str, recorded: float | None, counted: float | None
) -> float | None:
    """Bytes that the busiest rank sent, as far as that is known; they must have crossed its link."""
    most_recorded = None if recorded is None else world.largest(recorded)
    most_counted = None if counted is None else world.largest(counted)
    if most_counted is not None:
        expected = most_recorded
        if expected is None:
            expected = operation.fewest_sent(operation.nbytes, world.size, algorithm) * operation.sent_messages
        if most_counted < _MUST_CROSS * expected:
            raise MeasurementError(
                f"{operation.name} of {operation.nbytes} bytes sent {expected:.0f} bytes, but only {most_counted:.0f} "
                f"crossed the {world.link} link: MPI has found another way"
            )
    wire = most_counted if most_recorded is None else most_recorded
    return None if wire is None else wire / operation.sent_messages


def _check(world: World, operation: Collective, codec: Codec, algorithm: str) -> Verdict:
    """What all ranks find wrong, together."""
    verdict = judge(operation.checks(codec, algorithm))
    wrong = verdict.wrong
    result = operation.same_everywhere()
    if algorithm != NATIVE and result is not None:  # MPI does not promise equal bits
        wrong += differing(world.comm, result)
    return Verdict(world.largest(verdict.max_err), world.comm.allreduce(wrong))


def _time(world: World, comm: Any, operation: Collective, settings: Settings, iterations: int, bar: Any) -> np.ndarray:
    """Seconds of the slowest rank per message, shape (codecs, iterations)."""
    from mpi4py import MPI

    callers = [_caller(world, comm, type(operation), codec, settings) for codec in settings.rows]
    times = np.empty((len(callers), iterations))
    for i in range(iterations):
        for k, (caller, how) in enumerate(callers):
            world.comm.Barrier()
            started = time.perf_counter()
            operation.call(caller, **how)
            devices.wait_for(operation.recv)
            times[k, i] = time.perf_counter() - started
        bar.update(min(1 / iterations, bar.total - bar.n))
    world.comm.Allreduce(MPI.IN_PLACE, times, MPI.MAX)
    return times / operation.messages


def _row(
    world: World, operation: Collective, codec: Codec | None, trial: _Trial, times: np.ndarray, native: float
) -> Row:
    size = world.size
    rounds = trial.algorithm == SWITCHED and codec is not None and not codec.verbatim
    if rounds or trial.algorithm in _SIZED_BY_DATA:
        busiest = trial.wire_bytes
    else:
        frame_nbytes = operation.nbytes if codec is None else _frame_nbytes(world, operation, codec)
        busiest = operation.fewest_bytes(frame_nbytes, size, trial.algorithm)
    seconds = float(np.median(times))
    algbw = operation.volume() / seconds
    ratio = 1.0
    if codec is not None and trial.wire_bytes:
        ratio = operation.fewest_sent(operation.nbytes, size, trial.algorithm) / trial.wire_bytes
    return Row(
        collective=operation.name,
        codec=NO_CODEC if codec is None else codec.spec,
        algorithm=trial.algorithm,
        mpi=world.mpi,
        ranks=size,
        link=world.link,
        nbytes=operation.nbytes,
        seconds=seconds,
        seconds_native=native,
        bound_seconds=world.rate and busiest and busiest / world.rate,
        wire_bytes=trial.wire_bytes,
        ratio=ratio,
        max_err=trial.verdict and trial.verdict.max_err,
        wrong=trial.verdict and trial.verdict.wrong,
        seconds_avg=float(times.mean()),
        seconds_min=float(times.min()),
        seconds_max=float(times.max()),
        iterations=times.size,
        algbw=algbw,
        busbw=algbw * operation.bus_factor(),
        speedup=native / seconds,
    )


def _frame_nbytes(world: World, operation: Collective, codec: Codec) -> int:
    """Length of one frame that holds a whole message."""
    if world.rank == 0:
        message = values(0, 0, operation.count)
        frame = np.empty(codec.max_encoded_nbytes(message.size, message.dtype), np.uint8)
        return world.comm.bcast(codec.encode(message, frame))
    return world.comm.bcast(None)
