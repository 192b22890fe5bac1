"""What programs can do is known before anything is sent."""

import ml_dtypes
import numpy as np
import pytest
from switch_loop import summed

from collcomp.kernels.cpu import packets
from collcomp.switch.programs import EXACT, PROGRAMS, lanes_for

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]
INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
UNSIGNED = INTEGERS[4:]


def test_names_are_those_of_the_programs():
    assert all(program.name == name for name, program in PROGRAMS.items())
    for program in PROGRAMS.values():
        assert program.payload_nbytes is None or program.payload_nbytes % 8 == 0


def test_lanes_have_the_width_of_what_they_carry():
    for program in PROGRAMS.values():
        for dtype in FLOATS + INTEGERS:
            for op in ("sum", "max", "or"):
                try:
                    lanes = lanes_for(program, dtype, op)
                except (TypeError, ValueError):
                    continue
                assert lanes in program.lanes
                assert packets.WIDTHS[lanes] == np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_exact_sums_every_dtype(dtype):
    rng = np.random.default_rng(3)
    arrays = [rng.integers(0, 100, 700).astype(dtype) for _ in range(3)]
    expected = np.sum(np.array(arrays, np.float64), 0)
    wide = expected.astype(dtype) if dtype in FLOATS else expected.astype(np.int64).astype(dtype)
    for y in summed(EXACT, arrays, loss=0.05):
        np.testing.assert_array_equal(y, wide)


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_exact_keeps_largest_unsigned_integers(dtype):
    rng = np.random.default_rng(4)
    arrays = [rng.integers(0, np.iinfo(dtype).max, 700, dtype, endpoint=True) for _ in range(3)]
    for y in summed(EXACT, arrays, op="max"):
        np.testing.assert_array_equal(y, np.maximum.reduce(arrays))


def test_exact_joins_bits():
    arrays = [np.full(10, 1 << rank, np.uint8) for rank in range(3)]
    assert summed(EXACT, arrays, op="or")[0].tolist() == [7] * 10


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - {"exact"}))
def test_published_systems_sum_float32_and_int32_only(name):
    program = PROGRAMS[name]
    assert {lanes_for(program, np.float32, "sum"), lanes_for(program, np.int32, "sum")} == set(program.lanes)
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.int64, np.complex64):
        with pytest.raises(TypeError, match=rf"dtype: program '{name}'.*not of {np.dtype(dtype)}"):
            lanes_for(program, dtype, "sum")
    for op in ("max", "or", "prod"):
        with pytest.raises(ValueError, match=rf"op: program '{name}' of the switch has sum, not '{op}'"):
            lanes_for(program, np.float32, op)


def test_exact_refuses_what_it_cannot_combine():
    for dtype, op in ((np.float64, "sum"), (np.float32, "max"), (np.int32, "max"), (np.uint16, "or")):
        with pytest.raises(TypeError, match=rf"dtype: program 'exact'.*not of {np.dtype(dtype)}"):
            lanes_for(EXACT, dtype, op)
    with pytest.raises(ValueError, match=r"op: program 'exact' of the switch has max, or, sum, not 'min'"):
        lanes_for(EXACT, np.float32, "min")
