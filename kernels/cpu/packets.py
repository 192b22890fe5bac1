"""What a packet between a worker and an aggregating switch looks like; known to kernels and to Python, without numba.

A header of six little-endian 64-bit words, then the elements:

==== ======== ===============================================================================================
word bits     field
==== ======== ===============================================================================================
0    0-31     `MAGIC`
0    32-39    kind
0    40-47    lanes: what the elements are, and how they are combined
0    48-63    worker: who sends it; in a result, to whom it goes
1    0-63     job
2    0-63     epoch: number of the operation, ascending, equal on all workers
3    0-31     chunk: number of this piece of the message
3    32-63    slot: place in the job's part of the pool
4    0-31     signature: digest of all that the workers' calls have to agree in
4    32-63    count: elements
5    0-31     exponent, signed: of fixed point, or of an unrounded sum
5    32-47    flags
5    48-63    part: of an unrounded sum that is sent in several packets
              in a result: how long the switch waited for the others' packets, in `WAITED_S`
==== ======== ===============================================================================================
"""

HEADER_WORDS = 6
HEADER_NBYTES = 8 * HEADER_WORDS
#: Seconds.
WAITED_S = 1e-4
MAGIC = 0x31535743  # "CWS1"

# Kinds. Data:
ADD, RESULT = 0, 1
# Control, which Python looks after:
JOIN, WELCOME, LEAVE, REFUSAL, GIVE_UP, FAILURE, STATUS, MISSING = 2, 3, 4, 5, 6, 7, 8, 9
KINDS = 10

# Lanes: floats, which are summed exactly; integers that are added modulo 2**width; unsigned integers of which the
# largest is kept; bits that are joined by or; signed integers whose sum stays at the end of the range once it is there;
# floats that are sent as int32 in block fixed point and added modulo 2**32; or in fixed point and added as SAT32 are.
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
ADD8, ADD16, ADD32, ADD64 = 3, 4, 5, 6
MAX8, MAX16, MAX32, MAX64 = 7, 8, 9, 10
OR8 = 11
SAT32, BLOCK32, FIXED32 = 12, 13, 14
#: Bytes of an element, by lanes.
WIDTHS = (4, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8, 1, 4, 4, 4)

# Flags of an ADD from one switch to another: an unrounded sum, as `exact` has it.
NARROW, WIDE = 1, 2
# Flags of packets with SAT32 and FIXED32. Of an ADD: sent again. Of ADD and RESULT: has floats, as int32 was too small.
# Of a RESULT: a queue was long; the chunk met an aggregator that was taken; it is no sum, but asks for floats.
AGAIN, OVERFLOW, ECN, COLLISION, REQUEST = 4, 8, 16, 32, 64
#: Most bytes of a payload: with jumbo frames of 9,000 bytes a power of two of them fits.
LARGEST_NBYTES = 8192
#: Pieces that a wide sum is sent in.
PARTS = 8
#: Bytes of an element of a narrow sum (window, sign) and of a wide one (limbs, sign, special).
NARROW_NBYTES, WIDE_NBYTES = 9, 66
