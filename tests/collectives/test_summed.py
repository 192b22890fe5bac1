"""The `summed` algorithm: rounds of plain sums on real ranks."""

import numpy as np
import pytest
from helpers import F16, F32, F64, FLOATS, UNIT, operands, outcomes, peak, reference, run, same_bits

from collcomp import IN_PLACE
from collcomp.codecs import as_codec
from collcomp.errors import FrameError
from collcomp.policies import Call, unsuited


def program(comm, codec, op, dtype, count, in_place=False, steps=1):
    for step in range(steps):
        x = operands(comm.size, count, dtype, seed=step)[comm.rank]
        recv = x.copy() if in_place else np.full_like(x, 77)
        comm.allreduce(IN_PLACE if in_place else x, recv, op, codec=codec, key="w")
    return recv, comm.records[-1]


@pytest.mark.parametrize("size", range(2, 9))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_bound_and_bits(size, dtype, count):
    for op, in_place in (("sum", False), ("avg", True)):
        found = run(size, program, "shared_int:bits=16", op, dtype, count, in_place)
        results = [result for result, _ in found]
        assert same_bits(*results)
        error = peak(results[0].astype(F64) - reference(operands(size, count, dtype), op))
        step = 1 / (32767 // size)
        bound = step / 2 * (size if op == "sum" else 1) * (1 + 2.0**-18)
        assert error <= bound + 2 * size * UNIT[dtype] * (size if op == "sum" else 1)


def test_is_the_default_for_summable_codecs_only():
    for codec, algorithm in (("shared_int", "summed"), ("int8", "direct"), ("topk", "gathered")):
        assert {record.algorithm for _, record in run(2, program, codec, "sum", F32, 1000)} == {algorithm}


def test_wire_bytes_are_counted():
    size, count = 4, 1 << 16
    (_, record), *_ = run(size, program, "shared_int", "sum", F32, count)
    assert record.raw_nbytes == 2 * (size - 1) * count // size * 4
    # Codes of 5 to 6 bits there, sums of 7 to 8 bits back, 8 bytes for the agreement.
    assert 0.75 < record.wire_nbytes / ((6 + 8) / 8 * (size - 1) * count / size) < 1.02


def test_other_algorithms_take_its_frames():
    """A summable codec is a codec."""
    for algorithm in ("direct", "ring", "gathered"):

        def main(comm, algorithm=algorithm):
            x = operands(comm.size, 1000)[comm.rank]
            comm.allreduce(x, recv := np.empty_like(x), codec="shared_int:bits=16", algorithm=algorithm)
            return recv

        found = run(3, main)
        assert same_bits(*found)
        assert peak(found[0] - reference(operands(3, 1000))) < 1e-3


def test_a_codec_that_does_not_add():
    def main(comm):
        with pytest.raises(ValueError, match=r"algorithm: 'summed' .*summable, 'int8'"):
            comm.allreduce(np.ones(10, F32), np.ones(10, F32), codec="int8", algorithm="summed")

    run(2, main)


@pytest.mark.parametrize(
    ("one", "others"),
    [
        ({"codec": "shared_int:bits=16"}, {"codec": "shared_int"}),
        ({"codec": "shared_int"}, {"codec": "shared_int:feedback", "key": "w"}),
        ({"codec": "shared_int", "count": 999}, {"codec": "shared_int"}),
        ({"codec": "shared_int", "dtype": F16}, {"codec": "shared_int"}),
        ({"codec": "shared_int", "dtype": F64}, {"codec": "shared_int"}),
        ({"codec": "shared_int", "count": 0}, {"codec": "shared_int"}),
        ({"codec": "lhc"}, {"codec": "lhc", "count": 0}),
        ({"codec": "shared_int", "op": "avg"}, {"codec": "shared_int"}),
        ({"codec": "int8"}, {"codec": "shared_int"}),
        ({"codec": "shared_int"}, {"codec": "int8"}),
        ({"codec": "shared_int"}, {"codec": "identity"}),
        ({"codec": "shared_int", "algorithm": "direct"}, {"codec": "shared_int"}),
    ],
)
def test_calls_that_differ_are_found(one, others):
    def main(comm):
        how = {"count": 1000, "dtype": F32, **(one if comm.rank == 1 else others)}
        x = np.ones(how.pop("count"), how.pop("dtype"))
        with pytest.raises(FrameError):
            comm.allreduce(x, np.empty_like(x), **how)
        x = operands(comm.size, 1000)[comm.rank]
        comm.allreduce(x, result := np.empty_like(x), codec="shared_int")
        return result

    assert same_bits(*run(3, main))


def test_a_rank_that_fails_is_heard_of():
    def main(comm):
        x = np.ones(1000, F32)
        if comm.rank == 1:
            with pytest.raises(ValueError, match="op"):
                comm.allreduce(x, np.empty_like(x), "max", codec="shared_int")
        else:
            with pytest.raises(FrameError, match="rank 1 gave up"):
                comm.allreduce(x, np.empty_like(x), codec="shared_int")

    assert outcomes(3, main) == [None] * 3


def test_feedback_through_the_engine():
    def main(comm):
        total = np.zeros(800)
        for step in range(6):
            x = operands(comm.size, 800, seed=step)[comm.rank]
            comm.allreduce(x, result := np.empty_like(x), codec="shared_int:feedback", key="w")
            total += result
        return total, comm.residuals.state_dict()["residuals"]["w"]

    found = run(3, main)
    true = sum(x.astype(F64) for step in range(6) for x in operands(3, 800, seed=step))
    held = sum(residual.astype(F64) for _, residual in found)
    assert peak(found[0][0] - true) > 1e-2
    assert peak(found[0][0] + held - true) < 1e-4


def test_what_others_sent_leaves_the_residual_alone():
    """A call that fails because calls differ has not added its operand to the residual."""

    def main(comm):
        x = operands(comm.size, 500)[comm.rank]
        comm.allreduce(x, np.empty_like(x), codec="shared_int:feedback", key="w")
        before = comm.residuals.norm("w")
        x, key = (np.ones(400, F32), "v") if comm.rank else (x, "w")
        with pytest.raises(FrameError):
            comm.allreduce(x, np.empty_like(x), codec="shared_int:feedback", key=key)
        assert comm.residuals.norm("w") == before

    run(3, main)


def test_too_many_ranks_are_known_before():
    call = Call("allreduce", 1 << 20, F32, "sum", 128)
    assert "room for the sum of 127 ranks" in unsuited(call, as_codec("shared_int"))
    assert unsuited(call, as_codec("shared_int:bits=16")) is None


def test_errors_are_not_claimed_to_be_measured():
    def main(comm):
        comm.measure_error = True
        x = operands(comm.size, 2000)[comm.rank]
        norms = []
        for codec in ("shared_int", "threshold:ratio=0.1", "loco", "int4"):
            comm.allreduce(x, np.empty_like(x), codec=codec, key=codec)
            norms.append(comm.records[-1].error_norm)
        return norms

    for summed, *measured in run(2, main):
        assert summed is None
        assert min(measured) > 0.1
