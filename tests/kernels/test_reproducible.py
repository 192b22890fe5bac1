"""Results are the same bits on every CPU: nothing is contracted into fused multiply-adds, nor reassociated."""

import re

import numpy as np
import pytest

from collcomp.kernels.cpu import casts, microscaled, quantised

BLOCK = 256
SRC = np.linspace(-1, 1, 4 * BLOCK, dtype=np.float32)
SCALES = np.ones(4, np.float32)
CODES = np.zeros(4 * BLOCK, np.uint8)
EXPONENTS = np.full(4 * BLOCK // 32, 127, np.uint8)
CALLS = [
    (quantised.encode, (SRC, SCALES, np.zeros(4 * BLOCK, np.int8), SRC.copy(), BLOCK, None, 0)),
    (quantised.encode, (SRC, SCALES, np.zeros(4 * BLOCK, np.int8), SRC.copy(), BLOCK, 5, 0)),
    (quantised.encode_feedback, (SRC, SRC.copy(), SCALES, np.zeros(4 * BLOCK, np.int8), SRC.copy(), BLOCK, None, 0)),
    (quantised.decode_add, (SCALES, np.zeros(4 * BLOCK, np.int8), SRC.copy(), BLOCK, SRC.copy())),
    (quantised.decode_add, (SCALES, np.zeros(2 * BLOCK, np.uint8), SRC.copy(), BLOCK, SRC.copy())),
    (casts.encode_feedback, (SRC, SRC.copy(), np.zeros(4 * BLOCK, np.uint16), None)),
    (casts.encode_feedback, (SRC, SRC.copy(), np.zeros(4 * BLOCK, np.int16), 5)),
    (microscaled.encode_feedback, (SRC, SRC.copy(), SCALES, CODES, SRC.copy(), BLOCK, None, 0)),
    (microscaled.decode_add, (EXPONENTS, CODES, SRC.copy(), 32, SRC.copy())),
    (microscaled.decode_add, (EXPONENTS, CODES[: 2 * BLOCK].view(np.int8), SRC.copy(), 32, SRC.copy())),
]


@pytest.mark.parametrize(("kernel", "arguments"), CALLS)
def test_no_fused_multiply_add(kernel, arguments):
    import numba

    fresh = numba.njit(nogil=True, error_model="numpy")(kernel.py_func)  # cached ones do not keep their assembly
    fresh(*arguments)
    for assembly in fresh.inspect_asm().values():
        assert not re.search(r"\bv?fn?m(add|sub|la|ls)", assembly)
