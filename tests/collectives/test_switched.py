"""The `switched` algorithm, through a real switch."""

import threading

import ml_dtypes
import numpy as np
import pytest
from codec_specs import SPECS
from helpers import BF16, F16, F32, F64, UNIT, assert_within, operands, outcomes, peak, reference, run, same_bits
from switches import serving

import collcomp
from collcomp import IN_PLACE
from collcomp.codecs import Identity, as_codec
from collcomp.collectives import Plan
from collcomp.errors import CollcompError, DeadlineError, FrameError, TransportError

SWITCHED = {"codec": "identity", "algorithm": "switched"}
INTEGERS = [np.dtype(kind + width) for width in "1248" for kind in "iu"]
#: More than the slots of a job hold, and less than a packet more.
WINDOWS = 32 * 2048 * 2 + 77


@pytest.fixture(scope="module")
def switch():
    with serving() as one:
        yield one


@pytest.fixture(scope="module", params=[0.01, 0.1])
def lossy(request):
    with serving(loss=request.param, seed=3) as one:
        yield one


def exact_sum(xs):
    """The sums rounded once: those of float64, where they are exact, as they are of operands whose bits are near."""
    total = np.sum([x.astype(F64) for x in xs], axis=0)
    return total.astype(xs[0].dtype)


def near(size, count, dtype):
    """Operands of both signs whose float64 sum is exact: all bits lie within 53 places."""
    generator = np.random.default_rng([size, count])
    return [(generator.integers(-(1 << 20), 1 << 20, count) / 2.0**12).astype(dtype) for _ in range(size)]


def allreduce(comm, xs, op="sum", in_place=False, **how):
    x = xs[comm.rank]
    recv = x.copy() if in_place else np.full_like(x, 3)
    comm.allreduce(IN_PLACE if in_place else x, recv, op, **{**SWITCHED, **how})
    return recv


def through(switch, xs, *args, deadline=60.0, **how):
    return run(len(xs), allreduce, xs, *args, switch=switch.address, deadline=deadline, **how)


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_floats_are_rounded_once(switch, size, dtype):
    def main(comm):
        return [allreduce(comm, near(size, count, dtype), in_place=count % 2 == 1) for count in COUNTS]

    found = run(size, main, switch=switch.address)
    for number, count in enumerate(COUNTS):
        results = [of_rank[number] for of_rank in found]
        assert same_bits(*results, exact_sum(near(size, count, dtype))), count


COUNTS = [0, 1, 2, 1001, 4096, WINDOWS]


def test_rounding_once_is_not_what_others_do(switch):
    """The case is one that tells: a sum in rank order loses the small operands."""
    xs = [np.array([value], F32) for value in (2.0**24, 1.0, 1.0, 1.0, -(2.0**24))]
    assert [float(result[0]) for result in through(switch, xs)] == [3.0] * 5
    assert float(np.sum(xs, axis=0, dtype=F32)[0]) != 3.0


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_special_values(switch, dtype):
    inf, nan = np.inf, np.nan
    largest = float(ml_dtypes.finfo(dtype).max)
    columns = [(inf, 1), (inf, -inf), (nan, 1), (-0.0, -0.0), (0.0, -0.0), (largest, largest), (largest, -largest)]
    xs = [np.array([column[rank] for column in columns], dtype) for rank in range(2)]
    first, second = through(switch, xs)
    assert same_bits(first, second)
    expected = [inf, nan, nan, -0.0, 0.0, inf, 0.0]
    np.testing.assert_array_equal(first.astype(F64), expected)
    assert np.signbit(first[3])
    assert not np.signbit(first[4])


@pytest.mark.parametrize("dtype", [*INTEGERS, np.dtype(bool)], ids=str)
@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_integers_are_what_direct_makes_of_them(switch, dtype, op):
    generator = np.random.default_rng(5)
    size, bits = 3, 8 * dtype.itemsize
    if dtype.kind == "b":
        xs = [generator.integers(0, 2, 5001).astype(bool) for _ in range(size)]
    else:  # all values there are: sums wrap around
        xs = [generator.integers(0, 1 << bits - 1, 5001, np.uint64).astype(dtype) for _ in range(size)]
        xs = [x * dtype.type(2) + dtype.type(rank % 2) for rank, x in enumerate(xs)]

    def main(comm):
        return allreduce(comm, xs, op), allreduce(comm, xs, op, algorithm="direct")

    found = run(size, main, switch=switch.address)
    assert same_bits(*(result for pair in found for result in pair))


@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=str)
@pytest.mark.parametrize("op", ["max", "min"])
def test_largest_and_least_floats(switch, dtype, op):
    xs = operands(3, 3000, dtype)
    xs[0][:6] = np.array([np.nan, np.inf, -np.inf, -0.0, -0.0, 1], dtype)
    xs[1][:6] = np.array([1, -np.inf, -np.inf, -0.0, -0.0, np.nan], dtype)
    xs[2][:6] = np.array([np.inf, 7, 7, -0.0, -0.0, np.nan], dtype)
    results = through(switch, xs, op)
    assert same_bits(*results)
    function = np.maximum if op == "max" else np.minimum
    wide = [x.astype(F64) for x in xs]
    np.testing.assert_array_equal(results[0].astype(F64), function(function(wide[0], wide[1]), wide[2]))


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_average_divides_the_sum(switch, dtype):
    xs = near(3, 4000, dtype)
    results = through(switch, xs, "avg")
    assert same_bits(*results)
    assert_within(results[0], reference(xs, "avg"), 2 * UNIT[dtype] * peak(reference(xs, "sum")))
    sums = through(switch, xs)[0]
    assert same_bits(results[0], (sums.astype(F32) / 3).astype(dtype))


def test_average_of_integers_is_refused_as_elsewhere(switch):
    def main(comm):
        texts = []
        for algorithm in ("switched", "direct"):
            with pytest.raises(TypeError, match="average") as caught:
                allreduce(comm, [np.ones(5, np.int32)] * 2, "avg", algorithm=algorithm)
            texts.append(str(caught.value))
        return texts

    for one, other in run(2, main, switch=switch.address):
        assert one == other


def test_arrays_of_any_form(switch):
    def main(comm):
        whole = np.arange(60, dtype=F32).reshape(3, 20) + comm.rank
        recv = np.zeros((20, 6), F32)
        comm.allreduce(whole[:, ::2], recv[::2, :3], **SWITCHED)
        scalar, total = np.array(2.5, F32), np.zeros((), F32)
        comm.allreduce(scalar, total, **SWITCHED)
        backwards = np.arange(10, dtype=F32)[::-1]
        comm.allreduce(IN_PLACE, backwards, **SWITCHED)
        return recv, total, backwards

    for recv, total, backwards in run(2, main, switch=switch.address):
        whole = np.arange(60, dtype=F32).reshape(3, 20)[:, ::2]
        np.testing.assert_array_equal(recv[::2, :3].reshape(-1), 2 * whole.reshape(-1) + 1)
        assert not recv[1::2].any()
        assert not recv[:, 3:].any()
        assert total == 5
        np.testing.assert_array_equal(backwards, 2 * np.arange(10)[::-1])


def test_nonblocking_and_blocking_go_out_in_the_order_of_calls(switch):
    """Some ranks wait at once, others late: what is called second may not overtake on one rank."""

    def main(comm):
        xs, results, requests = operands(3, 200_000), [], []
        for turn in range(4):
            result = np.empty_like(xs[0])
            requests.append(comm.iallreduce(xs[(comm.rank + turn) % 3], result, **SWITCHED))
            results.append(result)
            if (turn + comm.rank) % 2:
                requests[-1].wait()
            results.append(allreduce(comm, xs))
        for request in requests:
            request.wait()
        return results

    found = run(3, main, switch=switch.address)
    assert same_bits(*(result for of_rank in found for result in of_rank))


def test_persistent(switch):
    def main(comm):
        x, result = np.zeros(1000, F32), np.zeros(1000, F32)
        persistent = comm.allreduce_init(x, result, **SWITCHED)
        sums = []
        for turn in range(3):
            x[...] = comm.rank + turn
            persistent.start()
            persistent.wait()
            sums.append(float(result[0]))
        return sums

    assert run(2, main, switch=switch.address) == [[1.0, 3.0, 5.0]] * 2


def test_many_operations(switch):
    def main(comm):
        totals = []
        for count in range(200):
            x = np.full(count % 7 * 1000 + 1, count + comm.rank, [np.int32, F32, F16][count % 3])
            comm.allreduce(IN_PLACE, x, "max" if count % 4 == 3 else "sum", **SWITCHED)
            totals.append(float(x[-1]))
        return totals

    expected = [float(n + 1 if n % 4 == 3 else 2 * n + 1) for n in range(200)]
    assert run(2, main, switch=switch.address) == [expected] * 2


def test_two_jobs_at_once(switch):
    """Two communicators of every rank, in use at the same time; then both are gone."""
    xs = operands(2, 150_000)
    others = collcomp.local.communicators(2, switch=switch.address)

    def main(comm):
        other = others[comm.rank]
        a, b = np.empty_like(xs[0]), np.empty_like(xs[0])
        for _ in range(3):
            one = comm.iallreduce(xs[comm.rank], a, **SWITCHED)
            two = other.iallreduce(xs[1 - comm.rank], b, **SWITCHED)
            one.wait()
            two.wait()
            assert same_bits(a, b)
        return a

    assert same_bits(*run(2, main, switch=switch.address), exact_sum(xs))
    for comm in others:
        comm.close()


def test_one_rank_needs_no_packets():
    def main(comm):
        x = np.arange(5, dtype=F32)
        comm.allreduce(x, result := np.empty_like(x), **SWITCHED)
        return result

    with serving() as switch:
        np.testing.assert_array_equal(run(1, main, switch=switch.address)[0], np.arange(5))
    assert switch.counts == {}


def test_the_record_counts_packets(switch):
    count = 20_000

    def main(comm):
        allreduce(comm, operands(2, count))
        return comm.records[-1]

    for record in run(2, main, switch=switch.address):
        assert (record.algorithm, record.raw_nbytes) == ("switched", 4 * count)
        assert 4 * count < record.wire_nbytes


# ---------------------------------------------------------------------- codecs

SUMMABLE = [spec for spec in SPECS if as_codec(spec).summable]
SUMMABLE += ["shared_int:bits=16,feedback", "thc:feedback", "lhc:feedback", "randomk:feedback"]
#: Those with rounds of floats, which `summed` adds in rank order.
FLOATING = ("powersgd", "random")


def steps(comm, spec, dtype, op, algorithm, count=3000):
    results = []
    for step in range(3):
        x = operands(comm.size, count, dtype, seed=step)[comm.rank]
        if spec.startswith("lhc"):
            x[(np.arange(count) + comm.rank) % 40 > 1] = 0  # what it is for
        how = {"key": "w"} if as_codec(spec).needs_key else {}
        results.append(allreduce(comm, {comm.rank: x}, op, codec=spec, algorithm=algorithm, **how))
    return results


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("spec", SUMMABLE)
def test_codecs_whose_payloads_add(switch, spec, dtype):
    op = "avg" if dtype == BF16 else "sum"
    ours, theirs = [run(3, steps, spec, dtype, op, how, switch=switch.address) for how in ("switched", "summed")]
    for step in range(3):
        a, b = [of_rank[step] for of_rank in ours], [of_rank[step] for of_rank in theirs]
        assert same_bits(*a)
        if spec.startswith(FLOATING):  # floats: rounded once, or in rank order
            scale = peak(b[0])
            assert_within(a[0], b[0].astype(F64), 64 * max(UNIT[F32], UNIT[dtype]) * scale, f"step {step}")
        else:
            assert same_bits(*a, *b)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_codecs_on_few_elements(switch, count):
    def main(comm):
        return [steps(comm, spec, F32, "sum", "switched", count)[-1] for spec in ("shared_int", "lhc", "thc")]

    found = run(2, main, switch=switch.address)
    for results in zip(*found, strict=True):
        assert same_bits(*results)


def test_values_that_codes_cannot_hold(switch):
    """Codecs send the message as it is then, in whatever dtype it is."""

    def main(comm, dtype):
        x = np.ones(100, dtype)
        x[3] = np.inf
        return [allreduce(comm, [x] * 2, codec=codec) for codec in ("shared_int", "lhc", "thc")]

    for dtype in (F32, F64):
        for results in zip(*run(2, main, dtype, switch=switch.address), strict=True):
            assert same_bits(*results)
            assert np.isinf(results[0][3])


# ---------------------------------------------------------------------- loss


def test_loss_changes_no_bit(lossy, switch):
    xs = [near(3, WINDOWS, F32), near(3, 501, F16), [x.astype(np.int32) for x in near(3, 9000, F32)]]

    def main(comm):
        results = [allreduce(comm, x, op) for x, op in zip(xs, ("sum", "sum", "max"), strict=True)]
        results += steps(comm, "shared_int:bits=16,feedback", F32, "sum", "switched")
        return results, sum(record.wire_nbytes for record in comm.records)

    (safe, _), *_ = run(3, main, switch=switch.address)
    before = lossy.counts
    found = run(3, main, switch=lossy.address, deadline=60.0)
    assert lossy.counts["lost"] > before.get("lost", 0)
    for results, _ in found:
        for ours, theirs in zip(results, safe, strict=True):
            assert same_bits(ours, theirs)


# ---------------------------------------------------------------------- errors


def test_float64_sums_are_refused_before_anything_is_sent(switch):
    before = switch.counts

    def main(comm):
        x = np.ones(10, F64 if comm.rank == 1 else F32)
        allreduce(comm, [x] * 3)

    found = outcomes(3, main, switch=switch.address)
    assert isinstance(found[1], TypeError)
    assert "float64" in str(found[1])
    assert "float32, float16, bfloat16, int8" in str(found[1])
    for other in (found[0], found[2]):
        assert isinstance(other, FrameError), other
        assert "rank 1" in str(other)
    assert switch.counts.get("results", 0) == before.get("results", 0)


def test_without_a_switch(monkeypatch):
    monkeypatch.delenv("COLLCOMP_SWITCH", raising=False)

    def main(comm):
        with pytest.raises(ValueError, match=r"'switched' needs a switch; give switch='HOST:PORT' or set COLLCOMP_SW"):
            allreduce(comm, [np.ones(3, F32)] * 2)

    run(2, main)


def test_the_environment_names_the_switch(switch, monkeypatch):
    monkeypatch.setenv("COLLCOMP_SWITCH", switch.address)
    xs = near(2, 100, F32)
    assert same_bits(*run(2, allreduce, xs), exact_sum(xs))


@pytest.mark.parametrize("address", ["here", "host:", ":80", "host:99999", "host:0"])
def test_wrong_addresses(address):
    with pytest.raises(ValueError, match="is no HOST:PORT"):
        run(2, lambda comm: None, switch=address)


def test_unknown_host():
    found = outcomes(2, allreduce, near(2, 10, F32), switch="no-such-host.invalid:4000")
    assert all(isinstance(error, CollcompError) for error in found)
    assert any("no-such-host.invalid" in str(error) for error in found)


DIFFERENT = {
    "count": ({"count": 999}, {}),
    "none": ({"count": 0}, {}),
    "more packets": ({"count": 300_000}, {}),
    "dtype": ({"dtype": F16}, {}),
    "dtype of one size": ({"dtype": np.dtype("i4")}, {}),
    "op": ({"op": "max"}, {}),
    "average": ({"op": "avg"}, {}),
    "codec": ({"codec": "shared_int"}, {}),
    "codec's parameters": ({"codec": "shared_int:bits=16"}, {"codec": "shared_int"}),
    "codec's dtype": ({"codec": "shared_int", "dtype": F64}, {"codec": "shared_int"}),
    "codec's count": ({"codec": "lhc", "count": 0}, {"codec": "lhc"}),
    "powersgd": ({"codec": "powersgd", "key": "w", "dtype": F64}, {"codec": "powersgd", "key": "w"}),
}


def differ(comm, case):
    how = {"count": 1000, "dtype": F32, **DIFFERENT[case][comm.rank != 1]}
    x = np.ones(how.pop("count"), how.pop("dtype"))
    with pytest.raises(FrameError):
        allreduce(comm, [x] * 3, **how)
    return allreduce(comm, near(3, 1000, F32))


@pytest.mark.parametrize("case", DIFFERENT)
def test_calls_that_differ(switch, case):
    """Found by all, also in the first operation; and the next one works, as does one after that."""

    def main(comm):
        return [differ(comm, case), differ(comm, case)]

    found = run(3, main, switch=switch.address)
    assert same_bits(*(result for results in found for result in results), exact_sum(near(3, 1000, F32)))


def test_calls_that_differ_over_loss(lossy):
    def main(comm):
        return [differ(comm, case) for case in DIFFERENT]

    found = run(3, main, switch=lossy.address, deadline=60.0)
    assert same_bits(*(result for results in found for result in results))


def test_what_failed_leaves_residuals_alone(switch):
    def main(comm, spec):
        x = operands(comm.size, 500)[comm.rank]
        allreduce(comm, {comm.rank: x}, codec=spec, key="w")
        before = comm.residuals.norm("w")
        y, key = (np.ones(400, F32), "v") if comm.rank else (x, "w")
        with pytest.raises(FrameError):
            allreduce(comm, {comm.rank: y}, codec=spec, key=key)
        assert comm.residuals.norm("w") == before

    for spec in ("shared_int:feedback", "randomk:feedback", "powersgd"):
        run(3, main, spec, switch=switch.address)


def test_a_wrong_argument_is_told(switch):
    """In the first operation and later; the next one works."""

    def main(comm):
        results = []
        for _ in range(3):
            if comm.rank == 1:
                with pytest.raises(ValueError, match="op"):
                    allreduce(comm, near(3, 10, F32), "prod")
            else:
                with pytest.raises(FrameError, match="rank 1 gave up"):
                    allreduce(comm, near(3, 10, F32))
            results.append(allreduce(comm, near(3, 10, F32)))
        return results

    assert same_bits(*(result for results in run(3, main, switch=switch.address) for result in results))


def test_an_error_of_another_operation_does_not_matter(switch):
    def main(comm):
        xs = near(3, 10, F32)
        results = [allreduce(comm, xs)]
        with pytest.raises((ValueError, FrameError)):
            comm.allreduce(xs[0], np.empty_like(xs[0]), "sum" if comm.rank else "prod")
        results.append(allreduce(comm, xs))
        return results

    assert same_bits(*(result for results in run(3, main, switch=switch.address) for result in results))


@pytest.mark.parametrize("joined", [False, True])
def test_a_rank_that_never_comes_is_named(switch, joined):
    def main(comm):
        if joined:
            allreduce(comm, near(3, 10, F32))
        comm.deadline = 2.0
        if comm.rank == 1:
            return None
        return allreduce(comm, near(3, 10, F32))

    found = outcomes(3, main, switch=switch.address, deadline=60.0)
    late = [error for error in found if isinstance(error, DeadlineError)]
    assert late
    assert all("it waits for rank 1" in str(error) for error in late)
    assert all(isinstance(found[rank], (DeadlineError, FrameError)) for rank in (0, 2))


def test_a_rank_that_is_late_finds_the_next_operation(switch):
    """The others' deadline is over; all raise, and all go on."""
    gone = threading.Event()

    def main(comm):
        xs = near(2, 10, F32)
        allreduce(comm, xs)
        comm.deadline = 1.0
        if comm.rank == 1:
            assert gone.wait(60)
        with pytest.raises(CollcompError):
            allreduce(comm, xs)
        gone.set()
        comm.deadline = 60.0
        return allreduce(comm, xs)

    assert same_bits(*run(2, main, switch=switch.address))


def test_an_interrupted_rank(switch):
    """What interrupts a rank that waits reaches it; the others are told, and the next operation works."""
    interrupted = threading.Event()

    def interrupt(sequence):
        raise KeyboardInterrupt

    def main(comm):
        xs = near(3, 10, F32)
        allreduce(comm, xs)
        if comm.rank == 0:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(comm._transport, "notice", interrupt)  # which a rank that waits looks at
                with pytest.raises(KeyboardInterrupt):
                    allreduce(comm, xs)
            interrupted.set()
        else:
            assert comm.rank == 2 or interrupted.wait(60)
            with pytest.raises(FrameError, match="KeyboardInterrupt"):
                allreduce(comm, xs)
        return allreduce(comm, xs)

    assert same_bits(*run(3, main, switch=switch.address))


def test_an_interrupted_rank_that_waits_for_its_own_background(switch):
    """The blocking call is behind a nonblocking one, and never goes out."""

    def interrupt(*_):
        raise KeyboardInterrupt

    def main(comm):
        xs = near(2, 10, F32)
        comm.iallreduce(xs[comm.rank], np.empty_like(xs[0]), **SWITCHED).wait()
        if comm.rank == 0:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(comm._background, "submit", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    allreduce(comm, xs)
        else:
            with pytest.raises(FrameError, match="KeyboardInterrupt"):
                allreduce(comm, xs)
        return allreduce(comm, xs)

    assert same_bits(*run(2, main, switch=switch.address))


class Through:
    """A policy for programs that name no algorithm."""

    def plan(self, call):
        switched = call.collective == "allreduce" and call.dtype != F64
        return Plan("switched" if switched else "direct", Identity())


def test_a_policy_names_the_algorithm(switch):
    def main(comm):
        xs = near(2, 100, F32)
        comm.allreduce(xs[comm.rank], result := np.empty_like(xs[0]))
        comm.bcast(result)
        return result, [record.algorithm for record in comm.records]

    for result, algorithms in run(2, main, switch=switch.address, policy=Through()):
        assert same_bits(result, exact_sum(near(2, 100, F32)))
        assert algorithms == ["switched", "direct"]


def test_nobody_listens():
    with serving() as ended:
        pass
    found = outcomes(3, allreduce, near(3, 10, F32), switch=ended.address)
    assert any(isinstance(error, TransportError) and "nothing listens there" in str(error) for error in found)
    assert all(isinstance(error, CollcompError) for error in found)


def test_a_switch_that_ends_and_comes_again():
    with serving() as first:
        steps = threading.Barrier(3)

        def main(comm):
            xs = near(2, 1000, F32)
            before = allreduce(comm, xs)
            steps.wait(60)  # the switch ends and another one starts
            steps.wait(60)
            with pytest.raises(CollcompError) as caught:
                allreduce(comm, xs)
            return before, allreduce(comm, xs), str(caught.value)

        found = []
        waiting = threading.Thread(target=lambda: found.extend(outcomes(2, main, switch=first.address)), daemon=True)
        waiting.start()
        steps.wait(60)
        first.stop()
        with serving(port=first.port):
            steps.wait(60)
            waiting.join(60)
    assert all(isinstance(outcome, tuple) for outcome in found), found
    assert same_bits(*(array for before, after, _ in found for array in (before, after)))
    assert any("started anew" in text or "nothing listens" in text for *_, text in found)


def test_a_mistyped_variable_hurts_only_who_uses_it(monkeypatch):
    monkeypatch.setenv("COLLCOMP_SWITCH", "here")

    def main(comm):
        x = np.ones(3, F32)
        comm.allreduce(x, x.copy())
        with pytest.raises(ValueError, match="COLLCOMP_SWITCH: 'here' is no HOST:PORT"):
            comm.allreduce(x, x.copy(), algorithm="switched")

    run(1, main)
