"""Operations leave records in a ring; totals count all."""

import pytest
from helpers import F32, operands, run, through

from collcomp import Record, Records


def filled(count, capacity):
    records = Records(capacity)
    for i in range(count):
        records.add("allreduce" if i % 3 else "bcast", "direct", "int8", i, 2 * i, 3 * i, 0.5)
    return records


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9, 23])
def test_the_latest_are_kept_oldest_first(count):
    records = filled(count, 4)
    assert len(records) == min(count, 4)
    kept = list(records)
    assert [record.sequence for record in kept] == list(range(max(0, count - 4), count))
    assert [record.nbytes for record in kept] == [record.sequence for record in kept]
    if count:
        assert records[-1].nbytes == count - 1
        assert isinstance(records[0], Record)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9, 23])
@pytest.mark.parametrize("read_between", [False, True])
def test_totals_survive_the_wrap(count, read_between):
    records = Records(4)
    for i in range(count):
        records.add("allreduce", "direct", "int8" if i % 2 else "int4", 10, 3, 9, 0.5)
        if read_between:
            records.totals()
    totals = records.totals()
    assert sum(total.calls for total in totals.values()) == count
    for codec, calls in (("int4", (count + 1) // 2), ("int8", count // 2)):
        if calls:
            total = totals["allreduce", "direct", codec]
            assert (total.calls, total.nbytes) == (calls, 10 * calls)
            assert (total.wire_nbytes, total.raw_nbytes) == (3 * calls, 9 * calls)
            assert total.seconds == 0.5 * calls


def test_native_operations_have_no_wire_bytes():
    records = Records()
    records.add("allreduce", "native", "none", 10, None, None, 0.0)
    assert records[-1].wire_nbytes is None
    assert records[-1].ratio is None
    assert records.totals()["allreduce", "native", "none"].wire_nbytes == 0


def test_index_out_of_range():
    with pytest.raises(IndexError):
        Records()[-1]


# ---------------------------------------------------------------------- what operations leave


def test_fields_of_an_allreduce():
    def program(comm):
        x = operands(comm.size, 4096)[comm.rank]
        comm.allreduce(x, x.copy(), codec="int8", key="w")
        return comm.records[-1]

    for record in run(4, program):
        assert (record.sequence, record.collective, record.algorithm) == (0, "allreduce", "direct")
        assert (record.codec, record.nbytes, record.key, record.reason) == ("int8", 16384, "w", "")
        assert record.error_norm is None
        assert record.seconds > 0
        # Three operands and three copies of the result, of 1024 elements with 4 scales and a header each.
        assert record.wire_nbytes == 6 * (64 + 64 + 1024)
        assert record.ratio == pytest.approx(6 * 4096 / record.wire_nbytes, rel=0.02)


@pytest.mark.parametrize("codec", ["identity", "bf16", "int8", "int4", "topk:ratio=0.1", "int4:feedback"])
def test_error_norm_is_what_encoding_lost(codec):
    def program(comm):
        x = operands(comm.size, 5000)[comm.rank]
        comm.allreduce(x, result := x.copy(), codec=codec, key="w", algorithm="gathered")
        return comm.records[-1].error_norm, result.astype(float)

    found = run(3, program, measure_error=True)
    for x, (norm, _) in zip(operands(3, 5000), found, strict=True):
        lost = x.astype(float) - through(codec, x)
        assert norm == pytest.approx(float((lost**2).sum() ** 0.5), rel=1e-5, abs=1e-12)


def test_error_norm_of_two_roundings_bounds_the_error_of_the_sum():
    def program(comm):
        x = operands(comm.size, 5000)[comm.rank]
        comm.allreduce(x, result := x.copy(), codec="int4")
        return comm.records[-1].error_norm, result.astype(float)

    found = run(4, program, measure_error=True)
    true = sum(x.astype(float) for x in operands(4, 5000))
    error = float((((found[0][1] - true) ** 2).sum()) ** 0.5)
    assert 0 < error <= sum(norm for norm, _ in found) * (1 + 1e-6)


def test_failed_operations_leave_none():
    def program(comm):
        x = operands(comm.size, 10)[comm.rank]
        with pytest.raises(ValueError, match="codec"):
            comm.allreduce(x, x.copy(), codec="nonsense")
        return len(comm.records)

    assert run(1, program) == [0]


def test_reason_of_a_small_message():
    def program(comm):
        x = operands(comm.size, 10, F32)[comm.rank]
        comm.allreduce(x, x.copy())
        return comm.records[-1]

    record = run(2, program, codec="int8")[0]
    assert record.codec == "identity"
    assert "40 bytes are fewer than min_nbytes=65536" in record.reason
