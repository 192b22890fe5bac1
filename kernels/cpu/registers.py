"""Where what stands in the registers of an aggregating switch; known to kernels and to Python, without numba."""

# Columns of `Pool.facts`, a row a job: how many workers (or switches) send to it here; first slot, and how many; most
# bytes of a payload, and most floats; ceil(log2) of the workers of the whole job; which worker this switch is to the
# one above, or -1.
CHILDREN, FIRST, SLOTS, PAYLOAD, FLOATS, HEADROOM, PARENT = range(7)
FACTS = 7

# Columns of `Pool.rows`, two rows a slot: what the row is used for; what is missing of it, `PARTS` a worker; its state;
# the largest exponent of fixed point, or the base of an exact sum; flags of its result; the aggregator that it holds,
# or -1.
EPOCH, CHUNK, SIGNATURE, LANES, COUNT, MISSING, STATE, EXPONENT, FLAGS, AGGREGATOR = range(10)
COLUMNS = 10
#: States: being summed; complete here, but not above; complete.
COLLECTING, WAITING, DONE = 0, 1, 2

#: What is to be done after a packet: nothing; send the row's sum to its sender, or to all; send what is summed so far
#: to the switch above; have Python look at the packet; tell all that the workers' calls differ; tell the sender that
#: its operation has failed, or that there is no such job.
NOTHING, TO_SENDER, TO_ALL, TO_PARENT, CONTROL, DIFFERS, GONE, WITHOUT_JOB = range(8)

#: What a switch counts: packets that arrived; chunks that were completed; sums that were sent again; packets that it
#: dropped because it had them already; because they are no packets of this kind; of no job that it knows; from an
#: address that is not the worker's; unlike the others' of the same chunk; of a chunk that all have the sum of; of one
#: that the worker cannot be at yet; of an operation that has failed; because they were to get lost. Where aggregators
#: are shared: packets that met one that was taken; sums that went from one to the server before they were complete;
#: chunks summed again, as floats.
(
    RECEIVED, RESULTS, REPEATED, DUPLICATES, MALFORMED, UNKNOWN, STRANGERS, UNLIKE, STALE, EARLY, FAILED, LOST,
    COLLISIONS, FLUSHED, OVERFLOWS,
) = range(15)  # fmt: skip
COUNTERS = (
    "received", "results", "repeated", "duplicates", "malformed", "unknown_job", "strangers", "unlike", "stale",
    "early", "failed", "lost", "collisions", "flushed", "overflows",
)  # fmt: skip
