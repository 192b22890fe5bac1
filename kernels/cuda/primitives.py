"""What kernels are made of that numba's simulator lacks: instructions for bits, rounding and warps.

All lanes of a warp call the functions of warps together. They do so for whole thread blocks at once in the simulator,
where a warp's lanes only meet when all threads do; so between two `cuda.syncthreads` all warps call them equally often.
"""

from collcomp.kernels.cuda.jit import SIMULATED

if SIMULATED:
    from collcomp.kernels.cuda.simulated import (
        bit_length,
        bits_of,
        float_of,
        lane_sums_before,
        largest_of_lanes,
        meet,
        product,
        product32,
        rint,
        smallest_of_lanes,
        sum_by_halves,
        union_of_lanes,
        value_of_lane,
        votes,
    )
else:
    from collcomp.kernels.cuda.hardware import (
        bit_length,
        bits_of,
        float_of,
        lane_sums_before,
        largest_of_lanes,
        meet,
        product,
        product32,
        rint,
        smallest_of_lanes,
        sum_by_halves,
        union_of_lanes,
        value_of_lane,
        votes,
    )

__all__ = [
    "bit_length",
    "bits_of",
    "float_of",
    "lane_sums_before",
    "largest_of_lanes",
    "meet",
    "product",
    "product32",
    "rint",
    "smallest_of_lanes",
    "sum_by_halves",
    "union_of_lanes",
    "value_of_lane",
    "votes",
]
