"""Speed, ratio and error of the codecs on one thread, beside `numpy.copyto` on the same data in the same loop.

GB/s count the float32 bytes of the message, for decoding too. All times are 20th percentiles over the repeats, which
other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collcomp import devices
from collcomp.codecs import CODECS, Codec, as_codec
from collcomp.codecs.libraries import has_library
from collcomp.frame import Envelope, Frame
from collcomp.kernels import cpu
from collcomp.units import parse_nbytes

from .arguments import codec_name, split_specs

__all__ = ["main", "make_data", "measure"]

DEFAULT_CODECS = (
    "fp16",
    "bf16",
    "fp8_e4m3",
    "fp8_e5m2",
    "mxfp8",
    "mxfp4",
    "int8",
    "int8:rounding=stochastic",
    "int8:asymmetric",
    "int4",
    "int4:rounding=stochastic",
    "int4:asymmetric",
    "int2",
    "sign",
    "loco",
    "qsgd",
    "qsgd:levels=3,spacing=natural",
    "terngrad",
    "hadamard+int4",
    "topk:ratio=0.01",
    "topk:ratio=0.001",
    "threshold:ratio=0.01",
    "threshold:ratio=0.01,method=dgc",
    "threshold:ratio=0.01,method=held",
    "randomk:ratio=0.01",
    "randomblock:ratio=0.01",
    "powersgd",
    "shared_int",
    "shared_int:bits=16",
    "shared_int:bits=32",
    "thc",
    "lhc",
    "bounded",
    "bounded:abs=1e-5",
    "hbound:abs=1e-5",
    "rows:dim=64,abs=1e-5",
    "exponents",
    "mpc",
    "planes",
    "nonzeros",
    "packed",
    "zfp",
    "zfp:rate=8",
    "blosc2",
    "numcodecs",
)
OPERATIONS = ("encode", "decode", "decode_add", "encode_keep", "encode_feedback", "hop")


def make_data(name: str, count: int) -> np.ndarray:
    """`count` float32 values.

    Parameters
    ----------
    name : str
        ``"normal"``; ``"grad"``: Student-t (3 degrees of freedom) in layers of different scale, as gradients are;
        ``"smooth"``: sines and a little noise, as fields of simulations are; or the path of an ``.npy`` file, which
        is repeated or cut to `count`.
    """
    rng = np.random.default_rng(0)
    if name.endswith(".npy"):
        return np.resize(np.load(name).ravel().astype(np.float32), count)
    if name == "normal":
        return rng.standard_normal(count, dtype=np.float32)
    if name == "grad":
        x = rng.standard_t(3, size=count).astype(np.float32)
        start = 0
        while start < count:
            stop = start + int(rng.integers(1 << 16, 1 << 21))
            x[start:stop] *= np.float32(10 ** rng.uniform(-5, -2))
            start = stop
        return x
    if name == "smooth":
        t = np.linspace(0, 400 * np.pi, count)
        waves = np.sin(t) + 0.3 * np.sin(7.3 * t + 1) + 0.05 * np.cos(31 * t)
        return (waves + 1e-5 * rng.standard_normal(count)).astype(np.float32)
    raise ValueError(f"data: expected normal, grad, smooth or an .npy file, got {name!r}")


def measure(codec: Codec, x: np.ndarray, repeats: int) -> dict[str, Any]:
    """One row: speeds of `codec` on `x` in GB/s and relative to memcpy, its ratio and its errors.

    ``"hop"`` is what a rank of a ring does to a partial sum: decode, add the rank's own values, encode. None where the
    codec cannot do it in one pass; lossless codecs have no feedback either.
    """
    buffer = np.zeros(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    work, copied, residual = np.zeros_like(x), np.zeros_like(x), np.zeros(x.size, codec.residual_dtype(x.dtype))
    state: dict[str, np.ndarray] = {}
    frame = Frame.read(buffer[: codec.encode(x, buffer)].copy())
    codec.decode(frame, work)
    error = work.astype(float) - x
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: codec.encode(x, buffer),
        "decode": lambda: codec.decode(frame, work),
        "decode_add": lambda: codec.decode_add(frame, work),
        "encode_keep": lambda: codec.encode_keep(x, work, buffer),
        "encode_feedback": lambda: codec.encode_feedback(x, residual, buffer, state=state),
        "hop": lambda: codec.encode_sum([frame], x, 1, 1, None, buffer, Envelope(x.dtype, x.size)),
    }
    row: dict[str, Any] = {
        "codec": codec.spec,
        "nbytes": x.nbytes,
        "ratio": x.nbytes / frame.nbytes,
        "max_err": float(np.abs(error).max()),
        "rms_err": float(np.sqrt(np.mean(error**2))),
        "rms": float(np.sqrt(np.mean(x.astype(float) ** 2))),
    }
    copies = []
    for name in OPERATIONS:
        if (name == "encode_feedback" and codec.lossless) or (name == "hop" and calls[name]() is None):
            row[f"{name}_gbps"] = row[f"{name}_by_memcpy"] = None
            continue
        seconds, copy_seconds = _time(calls[name], lambda: np.copyto(copied, x), repeats)
        row[f"{name}_gbps"] = x.nbytes / seconds / 1e9
        row[f"{name}_by_memcpy"] = copy_seconds / seconds
        copies.append(copy_seconds)
    row["memcpy_gbps"] = x.nbytes / float(np.median(copies)) / 1e9
    return row


def _time(call: Callable[[], Any], copy: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of both, called in turn."""
    seconds: list[list[float]] = [[], []]
    for _ in range(2 + repeats):
        for function, column in zip((call, copy), seconds, strict=True):
            start = time.perf_counter()
            function()
            column.append(time.perf_counter() - start)
    # The first two rounds compile and warm up.
    low, copy_low = (float(np.percentile(column[2:], 20)) for column in seconds)
    return low, copy_low


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'codec':28} {'MiB':>6} {'ratio':>7} {'max_err':>9} {'rms_err':>9} {'memcpy':>7}", end="")
    print("".join(f" {name:>15}" for name in OPERATIONS) + "   (GB/s, x memcpy)")
    for row in rows:
        print(f"{row['codec']:28} {row['nbytes'] / 2**20:6.1f} {row['ratio']:7.2f}", end="")
        print(f" {row['max_err']:9.2e} {row['rms_err']:9.2e} {row['memcpy_gbps']:7.2f}", end="")
        print("".join(f" {_cell(row[f'{name}_gbps']):>8} {_cell(row[f'{name}_by_memcpy']):>6}" for name in OPERATIONS))
    for nbytes, entropy, exponent in dict.fromkeys(
        (row["nbytes"], row["entropy"], row["exponent_entropy"]) for row in rows
    ):
        print(
            f"{nbytes / 2**20:.1f} MiB: {entropy:.1f} bits a value, {exponent:.1f} of them in the exponent (sampled):",
            end="",
        )
        print(f" coding each byte for itself, without loss, can reach {32 / max(entropy, 1e-3):.2f}")


def _cell(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.2f}"


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Rate against ratio: one point a codec for encoding, one for decoding."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    largest = max(row["nbytes"] for row in rows)
    rows = [row for row in rows if row["nbytes"] == largest]
    figure, axes = plt.subplots(figsize=(11, 6.5), layout="constrained")
    ratios = [row["ratio"] for row in rows]
    for name, marker in (("encode", "o"), ("decode", "v")):
        rates = [row[f"{name}_gbps"] for row in rows]
        axes.scatter(ratios, rates, marker=marker, alpha=0.7, label=name)
        for number, place in enumerate(zip(ratios, rates, strict=True), start=1):
            axes.annotate(str(number), place, (4, 3), textcoords="offset points", fontsize=7)
    names = "\n".join(f"{number} {row['codec']}" for number, row in enumerate(rows, start=1))
    axes.text(1.01, 1, names, transform=axes.transAxes, va="top", fontsize=7)
    axes.axhline(rows[0]["memcpy_gbps"], color="black", linewidth=0.8, label="memcpy")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("ratio (times smaller)")
    axes.set_ylabel("GB/s of float32, one thread")
    axes.set_title(f"Codecs, {largest / 2**20:.0f} MiB of float32 ({rows[0]['data']})")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    head = ["codec", "ratio", "rms error / rms", "encode", "decode", "decode and add", "with feedback"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        names = ("encode", "decode", "decode_add", "encode_feedback")
        speeds = [_cell(row[f"{name}_by_memcpy"]) for name in names]
        error = "0" if row["rms_err"] == 0 else f"{row['rms_err'] / row['rms']:.2g}"
        lines.append(f"| `{row['codec']}` | {row['ratio']:.3g} | {error} | " + " | ".join(speeds) + " |")
    return "\n".join(lines)


def _insert(table: str, data: str, path: Path) -> None:
    """Put `table` between the two comments of `path` that name `data`."""
    begin, end = f"<!-- {data}: begin -->", f"<!-- {data}: end -->"
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"--markdown: {path} does not have one {begin!r} and one {end!r}")
    before, rest = text.split(begin)
    path.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure codecs; the exit status."""
    parser = argparse.ArgumentParser(prog="collcomp bench codecs", description="Measure codecs on one thread.")
    parser.add_argument("--data", default="grad", help="normal, grad, smooth or FILE.npy (default: grad)")
    parser.add_argument("--sizes", default="64M", help="message sizes, such as 1M,64M (default: 64M)")
    parser.add_argument("--codec", action="append", help="specs of codecs, separated by commas (repeatable)")
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each operation (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw rate against ratio there, of the largest size"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE.md", help="put the table between FILE.md's comments that name the data"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the kernels are to run (default: cpu)"
    )
    options = parser.parse_args(argv)
    if options.device == "cuda" and devices.missing():
        parser.error(devices.missing())
    if options.repeats < 1:
        parser.error(f"--repeats: expected at least 1, got {options.repeats}")
    try:
        given = [spec for argument in options.codec or () for spec in split_specs(argument)]
        codecs = [as_codec(spec) for spec in given or _installed(DEFAULT_CODECS)]
        if options.device == "cuda" and not given:
            codecs = [codec for codec in codecs if codec.on_devices]
        counts = [parse_nbytes(size, "--sizes") // 4 for size in options.sizes.split(",")]
        if min(counts) < 1:
            parser.error(f"--sizes: expected at least 4 bytes, got {options.sizes}")
        messages = [make_data(options.data, count) for count in counts]
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    if options.device == "cuda":
        return _run_on_gpu(codecs, messages, options.json)
    from tqdm import tqdm

    rows = []
    with tqdm(total=len(codecs) * len(messages), file=sys.stderr, disable=None) as progress:
        for x in messages:
            entropies = cpu.load("statistics").byte_entropies(x)
            data = {"data": options.data, "entropy": entropies.sum(), "exponent_entropy": entropies[0]}
            for codec in codecs:
                progress.set_description(codec.spec)
                rows.append({**data, **measure(codec, x, options.repeats)})
                progress.update()
    _print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.plot:
        _plot(rows, options.plot)
    if options.markdown:
        try:
            _insert(_markdown(rows), options.data, options.markdown)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return 0


def _run_on_gpu(codecs: Sequence[Codec], messages: Sequence[np.ndarray], file: Path | None) -> int:
    from .gpu import run

    try:
        rows = run(codecs, messages)
    except TypeError as error:
        print(f"collcomp bench codecs: {error}", file=sys.stderr)
        return 2
    if file:
        file.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["same_frame"] is False for row in rows) else 0


def _installed(specs: Sequence[str]) -> list[str]:
    return [spec for spec in specs if has_library(CODECS[codec_name(spec)].library)]


if __name__ == "__main__":
    sys.exit(main())
