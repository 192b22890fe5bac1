"""Results are the same bits on every CPU: nothing is contracted into fused multiply-adds, nor reassociated."""

import re

import numpy as np
import pytest

from collcomp.kernels.cpu import bounded, casts, quantised

BLOCK = 256
SRC = np.linspace(-1, 1, 4 * BLOCK, dtype=np.float32)
SCALES = np.ones(4, np.float32)
GRID = np.array([[0.1, 0.1], [10, 10], [100, 100]], np.float32)
CODES, WORDS, ROOM = np.zeros(4, np.uint8), np.zeros(4 * BLOCK, np.uint32), np.zeros(BLOCK, np.int32)
BOUNDED = (GRID, CODES, WORDS, WORDS.view(np.float32), 0, np.int32(0), ROOM)
CALLS = [
    (quantised.encode, (SRC, SCALES, np.zeros(4 * BLOCK, np.int8), SRC.copy(), BLOCK, None, 0)),
    (quantised.encode, (SRC, SCALES, np.zeros(4 * BLOCK, np.int8), SRC.copy(), BLOCK, 5, 0)),
    (quantised.encode_feedback, (SRC, SRC.copy(), SCALES, np.zeros(4 * BLOCK, np.int8), SRC.copy(), BLOCK, None, 0)),
    (quantised.decode_add, (SCALES, np.zeros(4 * BLOCK, np.int8), SRC.copy(), BLOCK, SRC.copy())),
    (quantised.decode_add, (SCALES, np.zeros(2 * BLOCK, np.uint8), SRC.copy(), BLOCK, SRC.copy())),
    (bounded.encode_feedback, (SRC, SRC.copy(), *BOUNDED, ROOM.copy())),
    (bounded.decode_add, (SRC.copy(), *BOUNDED)),
    (casts.encode_feedback, (SRC, SRC.copy(), np.zeros(4 * BLOCK, np.uint16))),
]


@pytest.mark.parametrize(("kernel", "arguments"), CALLS)
def test_no_fused_multiply_add(kernel, arguments):
    import numba

    fresh = numba.njit(nogil=True, error_model="numpy")(kernel.py_func)  # cached ones do not keep their assembly
    fresh(*arguments)
    for assembly in fresh.inspect_asm().values():
        assert not re.search(r"\bv?fn?m(add|sub|la|ls)", assembly)
