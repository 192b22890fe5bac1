"""What kernels are made of that numba's simulator lacks: instructions for bits, rounding and warps.

All lanes of a warp call the functions of warps together. They do so for whole thread blocks at once in the simulator,
where a warp's lanes only meet when all threads do; so between two `cuda.syncthreads` all warps call them equally often.
"""

from collcomp.kernels.cuda.jit import SIMULATED

if SIMULATED:
    from collcomp.kernels.cuda.simulated import *  # noqa: F403 - both have the same names, which a test compares
else:
    from collcomp.kernels.cuda.hardware import *  # noqa: F403
