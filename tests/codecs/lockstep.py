"""Reductions of summable codecs, all ranks in one thread."""

import itertools

import numpy as np

_OPS = {"sum": np.add, "max": np.maximum, "or": np.bitwise_or}


def reduce_in_lockstep(codec, operands, *, shared=0, residuals=None, states=None, in_place=False):
    """What each rank gets of the sum of `operands`; also the arrays that were reduced, for their sizes."""
    size = len(operands)
    residuals = residuals or [None] * size
    states = states if states is not None else [{} for _ in range(size)]
    results = [x.copy() for x in operands]
    if not in_place:
        for result in results:
            result.fill(np.nan)
    rounds = [
        codec.reduction(
            results[rank] if in_place else operands[rank],
            results[rank],
            size,
            shared=shared,
            stream=1000 * shared + rank,
            residual=residuals[rank],
            state=states[rank],
        )
        for rank in range(size)
    ]
    sent = []
    for step in itertools.zip_longest(*rounds):
        arrays, ops = zip(*step, strict=True)  # fails where one rank has more rounds than another
        assert len({(array.shape, array.dtype, op) for array, op in step}) == 1
        total = arrays[0].copy()
        for array in arrays[1:]:
            _OPS[ops[0]](total, array, out=total)
        sent.append((total.copy(), ops[0]))
        for array in arrays:
            array[...] = total
    return results, sent
