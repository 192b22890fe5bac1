"""Results are the same bits on every CPU: nothing is contracted into fused multiply-adds, nor reassociated."""

import re

import numpy as np
import pytest

from collcomp.kernels.cpu import bounded, casts, dithered, loco, microscaled, quantised

BLOCK = 256
SRC = np.linspace(-1, 1, 4 * BLOCK, dtype=np.float32)
SCALES = np.ones(4, np.float32)
ONE, TWO, FOUR, EIGHT = (tuple(range(planes)) for planes in (1, 2, 4, 8))
CODES, OFFSETS = np.zeros(4 * BLOCK, np.uint8), np.ones((4, 2), np.float32)
LOCO = (SRC[:BLOCK].copy(), SCALES.copy(), CODES, SRC.copy(), BLOCK, TWO, ONE, SRC.size, 0)
WORDS, ROOM = np.zeros(4 * 8 * 5, np.uint32), np.zeros(BLOCK, np.int32)
GRID = np.array([[0.1, 0.1], [10, 10], [100, 100]], np.float32)
BITS, ROOMY = np.zeros(4, np.uint8), np.zeros(4 * BLOCK, np.uint32)
BOUNDED = (GRID, BITS, ROOMY, ROOMY.view(np.float32), 0, np.int32(0), ROOM)
EXPONENTS = np.full(4 * BLOCK // 32, 127, np.uint8)
CALLS = [
    (quantised.encode, (SRC, SCALES, CODES, SRC.copy(), BLOCK, ONE, SRC.size, None, 0)),
    (quantised.encode, (SRC, SCALES, CODES, SRC.copy(), BLOCK, ONE, SRC.size, 5, 0)),
    (quantised.encode, (SRC, OFFSETS, CODES, SRC.copy(), BLOCK, FOUR, SRC.size, 5, 0)),
    (quantised.encode, (SRC, SCALES, CODES, SRC.copy(), BLOCK, EIGHT, SRC.size, None, 0)),
    (quantised.encode_feedback, (SRC, SRC.copy(), SCALES, CODES, SRC.copy(), BLOCK, ONE, SRC.size, None, 0)),
    (quantised.decode_add, (SCALES, CODES, SRC.copy(), BLOCK, ONE, SRC.copy())),
    (quantised.decode_add, (SCALES, CODES, SRC.copy(), BLOCK, TWO, SRC.copy())),
    (quantised.decode_add, (OFFSETS, CODES, SRC.copy(), BLOCK, FOUR, SRC.copy())),
    (loco.encode_feedback, (SRC, CODES.copy(), SCALES, np.float32(0.8), *LOCO)),
    (bounded.encode_feedback, (SRC, SRC.copy(), *BOUNDED, ROOM.copy())),
    (bounded.decode_add, (SRC.copy(), *BOUNDED)),
    *(
        (
            dithered.encode,
            (SRC, SRC.copy(), None, SCALES, WORDS, SRC.copy(), ROOM, BLOCK, 15, 5, natural, True, 0.0, 5),
        )
        for natural in (None, True)
    ),
    (dithered.decode_add, (SCALES, WORDS, SRC.copy(), ROOM, BLOCK, 15, 5, None, SRC.copy())),
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
