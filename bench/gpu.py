"""Speed of the codecs' kernels on a GPU, beside the device's own copy in the same run.

Every operation is captured in a graph and replayed, so that what is timed is the device and not Python. Bandwidths
count the bytes that an operation has to read and write once; "of copy" is that over the bandwidth of a copy on the
device, which reads and writes too. Codecs whose frames depend on the values cannot be captured: they are timed call by
call, with the wait for the frame's size in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collcomp import devices
from collcomp.codecs import Codec
from collcomp.frame import HEADER_NBYTES, Envelope, Frame

from .table import Column, header, line, number

__all__ = ["Row", "measure", "peers", "print_rows"]

#: Replays between two looks at the clock, and how often that is done; the median counts.
_REPLAYS, _TIMES = 20, 7


@dataclass(frozen=True)
class Row:
    """One operation of one codec.

    Attributes
    ----------
    codec, operation : str
    nbytes : int
        Of the message.
    moved : int
        Bytes that the operation reads and writes.
    seconds : float
        Of one operation; median over the repeats.
    spread : float
        The largest of the repeats over the smallest.
    of_copy : float
        Its bandwidth over that of a copy on the device.
    unfused : float or None
        Seconds of the same in single steps (decode, then add; add, encode, subtract) over `seconds`.
    same_frame : bool or None
        Whether the frame is the CPU's, byte for byte.
    """

    codec: str
    operation: str
    nbytes: int
    moved: int
    seconds: float
    spread: float
    of_copy: float
    unfused: float | None = None
    same_frame: bool | None = None


def measure(codecs: Sequence[Codec], x: np.ndarray) -> Iterator[Row]:
    """Measure `codecs` on `x` (float32), and a copy first.

    Raises
    ------
    TypeError
        A codec has no kernels for devices.
    """
    for codec in codecs:
        codec.check_device(devices.like(x[:1], devices.cupy().empty(1, np.uint8)))
    values = devices.cupy().asarray(x)
    copied = devices.cupy().empty_like(values)
    seconds, spread = _time(lambda: devices.cupy().copyto(copied, values), True)
    bandwidth = 2 * x.nbytes / seconds
    yield Row("-", "copy", x.nbytes, 2 * x.nbytes, seconds, spread, 1.0)
    for codec in codecs:
        yield from _measure(codec, x, values, bandwidth)


def _measure(codec: Codec, x: np.ndarray, values: Any, bandwidth: float) -> Iterator[Row]:
    fixed = codec.fixed_payload_nbytes(x.size, x.dtype) is not None
    out = devices.allocate(codec.max_encoded_nbytes(x.size, x.dtype))
    work, residual = devices.zeros(x.size, x.dtype, values), devices.zeros(x.size, x.dtype, values)
    envelope = Envelope(x.dtype, x.size)
    nbytes = codec.encode(values, out, envelope)
    frame = Frame.read(out[:nbytes].copy())
    same = _same_frame(codec, x, frame.payload)
    n, p = x.nbytes, frame.payload.nbytes

    def add_apart() -> None:
        decoded = devices.empty(x.size, x.dtype, values)
        codec.decode(frame, decoded)
        np.add(work, decoded, out=work)

    def feedback_apart() -> None:
        np.add(residual, values, out=residual)
        codec.encode_keep(residual, work, out, envelope)
        np.subtract(residual, work, out=residual)

    operations: list[tuple[str, int, Callable[[], Any], Callable[[], Any] | None]] = [
        ("encode", n + p, lambda: codec.encode(values, out, envelope), None),
        ("decode", n + p, lambda: codec.decode(frame, work), None),
        ("decode_add", 2 * n + p, lambda: codec.decode_add(frame, work), add_apart),
        ("encode_keep", 2 * n + p, lambda: codec.encode_keep(values, work, out, envelope), None),
    ]
    if not codec.lossless and codec.residual_dtype(x.dtype) == x.dtype:
        feedback = lambda: codec.encode_feedback(values, residual, out, envelope)  # noqa: E731
        operations.append(("encode_feedback", 3 * n + p, feedback, feedback_apart))
    hop = lambda: codec.encode_sum([frame], values, 1, 1, work, out, envelope)  # noqa: E731
    if hop() is not None:
        operations.append(("hop", 2 * n + 2 * p, hop, None))
    for name, moved, call, apart in operations:
        seconds, spread = _time(call, fixed)
        unfused = None if apart is None else _time(apart, fixed)[0] / seconds
        of_copy = moved / seconds / bandwidth
        yield Row(codec.spec, name, n, moved, seconds, spread, of_copy, unfused, same if name == "encode" else None)


def _same_frame(codec: Codec, x: np.ndarray, payload: Any) -> bool:
    frame = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    nbytes = codec.encode(x, frame)
    return np.array_equal(frame[HEADER_NBYTES:nbytes], devices.host_copy(payload))


def _time(call: Callable[[], Any], captured: bool) -> tuple[float, float]:
    """Seconds of one call, the median of several measurements, and the largest of them over the smallest."""
    cuda = devices.cupy().cuda
    with cuda.Stream(non_blocking=True) as stream:
        for _ in range(2):  # compiles, and has CuPy take the memory that a capture must not ask for
            call()
        repeat = call
        if captured:
            stream.begin_capture(cuda.runtime.streamCaptureModeRelaxed)
            call()
            graph = stream.end_capture()
            repeat = lambda: graph.launch(stream)  # noqa: E731
        repeat()
        times = []
        for _ in range(_TIMES):
            begin, end = cuda.Event(), cuda.Event()
            begin.record(stream)
            for _ in range(_REPLAYS):
                repeat()
            end.record(stream)
            end.synchronize()
            times.append(cuda.get_elapsed_time(begin, end) / 1e3 / _REPLAYS)
    return float(np.median(times)), max(times) / min(times)


def peers(x: np.ndarray, bandwidth: float, block: int = 256) -> Iterator[Row]:
    """Quantisation to 8 bits as `torch.compile` makes it; nothing where PyTorch sees no GPU.

    It does a little less: blocks of zeros, NaN and infinities are not looked after.

    Parameters
    ----------
    x : ndarray of float32
        A multiple of `block` elements.
    bandwidth : float
        Of a copy, in bytes a second.
    """
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        return

    @torch.compile
    def encode(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = values.view(-1, block)
        scales = blocks.abs().amax(1, keepdim=True) / 127
        return torch.round(blocks / scales).to(torch.int8), scales

    @torch.compile
    def decode(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return codes * scales

    @torch.compile
    def decode_add(codes: torch.Tensor, scales: torch.Tensor, acc: torch.Tensor) -> None:
        acc += codes * scales

    values = torch.from_numpy(x).cuda()
    codes, scales = encode(values)
    acc = torch.zeros_like(codes, dtype=torch.float32)
    small = codes.nbytes + scales.nbytes
    for name, moved, call in (
        ("encode", x.nbytes + small, lambda: encode(values)),
        ("decode", x.nbytes + small, lambda: decode(codes, scales)),
        ("decode_add", 2 * x.nbytes + small, lambda: decode_add(codes, scales, acc)),
    ):
        seconds, spread = _time_torch(torch, call)
        yield Row("torch.compile int8", name, x.nbytes, moved, seconds, spread, moved / seconds / bandwidth)


def _time_torch(torch: Any, call: Callable[[], Any]) -> tuple[float, float]:
    """As `_time`, in PyTorch's graph."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    times = []
    for _ in range(_TIMES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(_REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / _REPLAYS)
    return float(np.median(times)), max(times) / min(times)


def print_rows(rows: Sequence[Row]) -> None:
    """The table."""
    columns = [
        Column("codec", lambda row: row.codec, max(len(row.codec) for row in rows), left=True),
        Column("operation", lambda row: row.operation, 15, left=True),
        Column("MiB", lambda row: number(row.nbytes / 2**20)),
        Column("us", lambda row: number(row.seconds * 1e6), 9),
        Column("spread", lambda row: number(row.spread)),
        Column("GB/s", lambda row: number(row.moved / row.seconds / 1e9), 8),
        Column("of copy", lambda row: number(row.of_copy)),
        Column("unfused", lambda row: number(row.unfused)),
        Column("frame", lambda row: {None: "-", True: "same", False: "DIFFERS"}[row.same_frame], left=True),
    ]
    print(header(columns))
    for row in rows:
        print(line(columns, row))


def run(codecs: Sequence[Codec], messages: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Measure, print, and return the rows as dicts."""
    from tqdm import tqdm

    print(f"# {devices.describe()}")
    rows: list[Row] = []
    for x in messages:
        rows += tqdm(measure(codecs, x), file=sys.stderr, disable=None, leave=False)
        copy = next(row for row in rows if row.nbytes == x.nbytes)
        if x.size % 256 == 0:
            rows += peers(x, copy.moved / copy.seconds)
    print_rows(rows)
    return [asdict(row) for row in rows]
