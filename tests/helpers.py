"""What several test modules share: ranks as threads, operands, references and error bounds."""

import threading

import ml_dtypes
import numpy as np

import collcomp
from collcomp.codecs import as_codec
from collcomp.codecs.base import working_dtype
from collcomp.collectives.direct import chunks
from collcomp.collectives.hierarchical import pieces
from collcomp.frame import Frame
from collcomp.planner.layout import Layout

F16, F32, F64 = map(np.dtype, ("f2", "f4", "f8"))
BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (F32, F64, F16, BF16)
#: What rounding to nearest loses at most, relative to the value.
UNIT = {F16: 2.0**-11, BF16: 2.0**-8, F32: 2.0**-24, F64: 2.0**-53}
LEVELS = {"int8": 127, "int4": 7}

#: How long a test waits for threads before it says that they hang. Shorter than pytest's own limit.
PATIENCE_S = 60


def outcomes(size, program, *args, **options):
    """What ``program(comm, *args)`` returned or raised on each rank; ranks are threads."""
    found = [None] * size
    options.setdefault("deadline", PATIENCE_S / 2)  # when one rank fails, the others are not waited for in vain

    def main(comm):
        try:
            found[comm.rank] = program(comm, *args)
        except BaseException as error:  # pytest's own failures are no Exception
            found[comm.rank] = error

    comms = collcomp.local.communicators(size, **options)
    threads = [threading.Thread(target=main, args=(comm,), daemon=True) for comm in comms]
    for thread in threads:
        thread.start()
    for rank, thread in enumerate(threads):
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"rank {rank} hangs; the others: {found}"
    for comm in comms:
        comm.close()
    return found


def run(size, program, *args, **options):
    """What ``program(comm, *args)`` returned on each rank; raises what the first failing rank raised."""
    found = outcomes(size, program, *args, **options)
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    return found


def laid_out(algorithm, size):
    """Options of communicators by which `algorithm` can be used."""
    return {"layout": Layout(tuple(range(size)), two_tiers(size))} if algorithm == "hierarchical" else {}


def two_tiers(size):
    """Groups of equal size: several of several where `size` allows, ranks neither in order nor side by side."""
    members = {2: 1, 5: 1, 4: 2, 6: 3, 8: 4}.get(size, size)
    return tuple(tuple(range(size))[::-1][g :: size // members] for g in range(size // members))


def uniform(count, dtype=F32, seed=0):
    """Values between -1 and 1: bounds that are told by the largest value are tight."""
    return np.random.default_rng([seed, count]).uniform(-1, 1, count).astype(dtype)


def operands(size, count, dtype=F32, seed=0):
    """One array for each rank."""
    return [uniform(count, dtype, 1000 * seed + rank) for rank in range(size)]


def reference(xs, op="sum"):
    """The reduction of `xs` in float64."""
    wide = np.array([x.astype(F64) for x in xs])
    return {"sum": wide.sum, "avg": wide.mean, "max": wide.max, "min": wide.min}[op](axis=0)


def peak(x):
    """Largest magnitude, 0 of nothing."""
    return float(np.abs(np.asarray(x, F64)).max(initial=0))


def same_bits(*arrays):
    """Whether all arrays are equal in every bit, NaN and signs of zero included."""
    first = arrays[0]
    return all(x.dtype == first.dtype and x.shape == first.shape and x.tobytes() == first.tobytes() for x in arrays)


# ---------------------------------------------------------------------- bounds


def loss(spec, magnitude, dtype):
    """Largest error of encoding values of at most `magnitude` once, as each codec documents it."""
    codec = as_codec(spec)
    if codec.codec_id == "identity":
        return UNIT[dtype] * magnitude if working_dtype(dtype) != dtype else 0.0
    if codec.codec_id == "fp16":
        return UNIT[F16] * magnitude + 2.0**-25
    if codec.codec_id == "bf16":
        return UNIT[BF16] * magnitude + 2.0**-133
    step = magnitude / LEVELS[codec.codec_id]
    return (step if codec.rounding == "stochastic" else step / 2) * (1 + 2.0**-13)


def reduction_bound(spec, xs, op, algorithm, dtype):
    """Largest error of any element of a reduction of `xs`, derived from the steps of `algorithm`."""
    size = len(xs)
    peaks = [peak(x) for x in xs]
    parts = 1 if op in ("max", "min") else size
    result = peak(reference(xs, op))
    scale = size if op == "avg" else 1
    if size == 1:
        error = 0.0
    elif algorithm == "ring":  # a partial sum of k operands is rounded at each hop, the result once more
        error = magnitude = 0.0
        for k in range(1, size):
            magnitude = max(peaks) * (1 if parts == 1 else k) + error
            error += loss(spec, magnitude, dtype)
        error = error / scale + loss(spec, result + error / scale, dtype)
    elif algorithm == "gathered":  # every operand is rounded, the result is not
        error = (max if parts == 1 else sum)(loss(spec, p, dtype) for p in peaks) / scale
    elif algorithm == "hierarchical":  # every group's sum but the owner's is rounded, then the result
        groups = [[xs[rank] for rank in group] for group in two_tiers(size)]
        sums = [reference(of_group, "sum" if parts > 1 else op) for of_group in groups]
        losses = sorted(loss(spec, peak(x), dtype) for x in sums)[0 if parts == 1 else 1 :]
        error = (max(losses) if parts == 1 else sum(losses)) / scale
        error += loss(spec, result + error, dtype)
    else:  # every operand but the owner's own is rounded, then the result
        losses = sorted(loss(spec, p, dtype) for p in peaks)[0 if parts == 1 else 1 :]
        error = (max if parts == 1 else sum)(losses) / scale
        if algorithm == "direct":
            error += loss(spec, result + error, dtype)
    working = working_dtype(dtype)
    error += 2 * (size + 1) * UNIT[working] * sum(peaks)
    if working != dtype:
        error += UNIT[dtype] * (result + error) + 2.0**-24
    return error


def assert_within(result, expected, bound, what=""):
    """Every element of `result` is within `bound` of `expected`."""
    difference = peak(result.astype(F64) - expected)
    assert difference <= bound, f"{what}: error {difference:g}, at most {bound:g} is promised"


# ---------------------------------------------------------------------- the algorithms, step by step


def through(spec, x):
    """What arrives of `x`, in its working dtype."""
    codec = as_codec(spec)
    buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    nbytes = codec.encode(x, buffer)
    arrived = np.empty(x.size, working_dtype(x.dtype))
    codec.decode(Frame.read(buffer[:nbytes]), arrived)
    return arrived


_JOIN = {"sum": np.add, "avg": np.add, "max": np.maximum, "min": np.minimum}


def _combine(values, op, size):
    acc = values[0].copy()
    for value in values[1:]:
        _JOIN[op](acc, value, out=acc)
    return acc / acc.dtype.type(size) if op == "avg" else acc


def simulated_allreduce(spec, xs, op, algorithm):
    """The result of an allreduce, computed in one place in the order that `algorithm` documents.

    For codecs that round to nearest, where every rank's result has to have exactly these bits.
    """
    size, dtype = len(xs), xs[0].dtype
    working = working_dtype(dtype)
    if size == 1:
        return xs[0].copy()

    def hop(x):  # values in their working dtype, sent in a message of `dtype`
        return through(spec, x.astype(dtype) if spec == "identity" else x).astype(working)

    if algorithm == "gathered":
        return _combine([hop(x.astype(working)) for x in xs], op, size).astype(dtype)
    result = np.empty_like(xs[0])
    if algorithm == "hierarchical":
        groups = two_tiers(size)
        inner = "sum" if op == "avg" else op
        for owner, part in pieces(xs[0].size, groups, as_codec(spec).block).items():
            column = next(column for column in zip(*groups, strict=True) if owner in column)
            sums = {}
            for rank, group in zip(column, groups, strict=True):
                of_group = _combine([xs[r][part].astype(working) for r in sorted(group)], inner, size)
                sums[rank] = of_group if owner in group else hop(of_group)
            result[part] = hop(_combine([sums[r] for r in sorted(sums)], op, size)).astype(dtype)
        return result
    for owner, part in enumerate(chunks(xs[0].size, size, as_codec(spec).block)):
        mine = [x[part].astype(working) for x in xs]
        if algorithm == "direct":
            acc = _combine([x if rank == owner else hop(x) for rank, x in enumerate(mine)], op, size)
        else:
            acc = hop(mine[(owner + 1) % size])
            for step in range(2, size + 1):
                _JOIN[op](acc, mine[(owner + step) % size], out=acc)
                if step < size:
                    acc = hop(acc)
            if op == "avg":
                acc /= acc.dtype.type(size)
        result[part] = hop(acc).astype(dtype)
    return result
