"""Every codec through every algorithm that can do an allreduce with it: the same bits on all ranks, and its bound."""

import numpy as np
import pytest
from codec_specs import LOSSY, SPECS
from helpers import BF16, F16, F32, F64, UNIT, assert_within, laid_out, operands, peak, reference, run, same_bits
from switches import serving

from collcomp.codecs import as_codec
from collcomp.collectives import ALGORITHMS, REQUIRED, SWITCHED

COUNT = 3000
STEPS = 2


def algorithms(codec):
    """The allreduce algorithms that take `codec`."""
    known = [name for name, table in ALGORITHMS.items() if "allreduce" in table]
    return [name for name in known if any(getattr(codec, needed) for needed in REQUIRED.get(name, ("block",)))]


CASES = [(spec, algorithm) for spec in SPECS for algorithm in algorithms(as_codec(spec))]


@pytest.fixture(scope="module")
def switch():
    with serving() as one:
        yield one


def program(comm, spec, algorithm, dtype, op):
    results = []
    for step in range(STEPS):
        x = operands(comm.size, COUNT, dtype, seed=step)[comm.rank]
        key = "w" if as_codec(spec).needs_key else None
        comm.allreduce(x, result := np.full_like(x, 7), op, codec=spec, algorithm=algorithm, key=key)
        results.append(result)
    return results


def bound(codec, xs, algorithm, op):
    """What the codec's own bound says of the sum, each operand and partial sum being as large as it may; or None."""
    size, largest = len(xs), max(map(peak, xs))
    scale = size if op == "avg" else 1

    def loss(magnitude, ranks=1):
        return float(codec.error_bound(np.array([magnitude]), ranks)[0])

    if codec.error_bound(np.ones(1)) is None:
        return None
    error = size * loss(largest, size if algorithm in ("summed", SWITCHED) else 1)
    if algorithm == "hierarchical":  # sums of groups are rounded, as many as there are groups at most
        error = size * loss(size * largest)
    if algorithm == "ring":  # each hop rounds a partial sum
        for _ in range(size):
            error += loss(size * largest + error)
    error /= scale
    if algorithm in ("direct", "ring", "hierarchical"):
        error += loss(size * largest / scale + error)
    error += 4 * size * UNIT[F32] * (size * largest + error)
    rounding = UNIT[xs[0].dtype]
    return error + rounding * (size * largest + error) if rounding > UNIT[F32] else error


@pytest.mark.parametrize(("spec", "algorithm"), CASES)
def test_bits_and_bound(spec, algorithm, switch):
    codec = as_codec(spec)
    wide = BF16 if codec.verbatim and algorithm == SWITCHED else F64  # which no switch sums
    for size, dtype, op in ((2, F32, "sum"), (3, wide, "avg"), (4, F16, "sum")):
        options = {"switch": switch.address, **laid_out(algorithm, size)}
        found = run(size, program, spec, algorithm, dtype, op, **options)
        again = run(size, program, spec, algorithm, dtype, op, **options)
        for step in range(STEPS):
            results = [of_rank[step] for of_rank in found]
            assert same_bits(*results, again[-1][step])
            assert np.isfinite(results[0]).all()
            xs = operands(size, COUNT, dtype, seed=step)
            limit = bound(codec, xs, algorithm, op)
            if limit is not None and not (codec.needs_key and step):
                assert_within(results[0], reference(xs, op), limit, f"{size} ranks, {dtype}, {op}")


@pytest.mark.parametrize("spec", [spec for spec in LOSSY if as_codec(spec).error_bound(np.ones(1)) is None])
def test_what_has_no_bound_is_no_noise(spec):
    """The sum of what such codecs send still points where the true sum does."""
    codec = as_codec(spec)
    xs = operands(3, COUNT)
    result = run(3, program, spec, None, F32, "sum")[0][0].astype(F64)
    true = reference(xs)
    cosine = result @ true / max(np.linalg.norm(result) * np.linalg.norm(true), 1e-300)
    kept = np.count_nonzero(result) / COUNT if codec.sparse else 1
    assert cosine > 0.05 * min(1, 10 * kept), cosine
