"""Where what stands in a worker's memory of an operation through a switch; without numba."""

#: Timeouts after which a timer that does not adapt is doubled; the next time it takes so many more than the last time.
PATIENT = 100

# `Worker.facts`: the job and the worker's number in it; the operation; lanes and their width in bytes; digest of the
# call; slots; how many of them may be under way; chunks and their bytes; chunks missing; slots under way; packets sent,
# how many of them again, and the bytes of all; workers of the job; by how many chunks' numbers elements come behind
# their exponent; sums until the window is looked at again, and whether one of them said that a queue was long.
(
    JOB, NUMBER, EPOCH, LANES, WIDTH, SIGNATURE, SLOTS, WINDOW, CHUNKS, CHUNK_NBYTES, MISSING, IN_FLIGHT, SENT, RESENT,
    SENT_NBYTES, WORKERS, LEAD, LEFT, MARKED,
) = range(19)  # fmt: skip
FACTS = 19

# `Worker.clock`, in seconds: smoothed round-trip time and its variation; the timer before anything is measured (or for
# good, where it does not adapt); how much longer than a round trip it is at least, and its most; whether it adapts;
# timeouts left until it is doubled, and how many there were the last time; by what all timers are multiplied since one
# ran out, and until when they are not multiplied again; how long sums waited for other workers, smoothed.
SMOOTHED, VARIATION, TIMER, FLOOR, CEILING, ADAPTIVE, THRESHOLD, PATIENCE, BACK_OFF, BACKED_OFF, WAITED = range(11)
CLOCK = 11
