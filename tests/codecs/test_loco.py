"""LoCo: the residual that decays, its own rounding, and its state."""

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal, peaks, same_bits
from helpers import run

from collcomp.codecs import Int4, LoCo, as_codec
from collcomp.feedback import Residuals, reshard
from collcomp.frame import Frame

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
BLOCK = 256
F32 = np.dtype(np.float32)


class Sender:
    """One tensor's calls, as a rank makes them."""

    def __init__(self, codec, count, dtype):
        self.codec, self.dtype = codec, np.dtype(dtype)
        self.residual, self.state = np.zeros(count, np.int8), {}

    def send(self, g):
        """What arrives of `g`."""
        buffer = np.empty(self.codec.max_encoded_nbytes(g.size, self.dtype), np.uint8)
        nbytes = self.codec.encode_feedback(g, self.residual, buffer, state=self.state)
        return decode(self.codec, Frame.read(buffer[:nbytes]), self.dtype).astype(float)

    @property
    def held(self):
        """The residual's values."""
        if not self.state:
            return np.zeros(self.residual.size)
        scales = self.state["scales"].astype(float).repeat(self.codec.block)[: self.residual.size]
        return self.residual * scales


class Model:
    """The method in float64, with a residual that is not rounded; blocks divide the count."""

    def __init__(self, count, beta):
        self.e, self.beta = np.zeros(count), beta

    def send(self, g):
        h = (g + self.e).reshape(-1, BLOCK)
        scale = np.maximum(np.abs(h).max(1, keepdims=True), 1e-300) / 7
        sent = (np.rint(h / scale) * scale).ravel()
        self.e = self.beta * self.e + (1 - self.beta) * (h.ravel() - sent)
        return sent


def gradients(count, calls, dtype=np.float64):
    """A direction that stays, and noise."""
    rng = np.random.default_rng(5)
    mean = rng.standard_normal(count)
    return [(mean + rng.standard_normal(count)).astype(dtype) for _ in range(calls)]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.8, 0.95])
def test_identity_of_the_exact_method(beta):
    """The sums of what was given and sent differ by e / (1 - beta): what the codec's documentation rests on."""
    model, gap = Model(1024, beta), np.zeros(1024)
    for g in gradients(1024, 100):
        gap += g - model.send(g)
    np.testing.assert_allclose(gap, model.e / (1 - beta), atol=1e-12)


@each_dtype
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("count", [3, 256, 1000])
def test_identity_within_the_roundings_of_the_residual(dtype, beta, count):
    sender, gap, bound = Sender(LoCo(beta=beta), count, dtype), np.zeros(count), np.zeros(count)
    unit = np.finfo(dtype).eps
    for g in gradients(count, 100, dtype):
        before = sender.held
        sent = sender.send(g)
        exact = beta * before + (1 - beta) * (g + before - sent)
        lost = exact - sender.held
        # `work` has the rounding of a few sums of its dtype; scales are float32 in any case.
        allowed = peaks(exact, BLOCK) / 254 * (1 + 2.0**-12) + 8 * unit * peaks(g + before, BLOCK)
        assert (np.abs(lost) <= allowed).all()
        gap += g - sent
        bound += allowed / (1 - beta)
        assert (np.abs(gap - sender.held / (1 - beta)) <= bound).all()
    assert np.abs(gap).max() > 0


def test_follows_the_exact_method():
    """The residual's own rounding costs little."""
    sender, model = Sender(LoCo(), 1024, np.float64), Model(1024, 0.8)
    exact, rounded, true = np.zeros(1024), np.zeros(1024), np.zeros(1024)
    for g in gradients(1024, 200):
        exact += model.send(g)
        rounded += sender.send(g)
        true += g
    exact_gap, rounded_gap = (np.sqrt(np.mean((total - true) ** 2)) for total in (exact, rounded))
    assert rounded_gap == pytest.approx(exact_gap, rel=0.2)


def test_beta_trades_memory_for_lag():
    """The gap that has built up: small with any residual, and smaller the less the residual is smoothed."""
    gs = gradients(4096, 200, np.float32)
    true = np.sum(gs, 0, dtype=float)

    def gap(send):
        return float(np.sqrt(np.mean((sum(send(g) for g in gs) - true) ** 2)))

    without = gap(lambda g: decode(Int4(), encode(Int4(), g), F32).astype(float))
    gaps = [gap(Sender(LoCo(beta=beta), 4096, F32).send) for beta in (0.0, 0.5, 0.8, 0.95)]
    assert gaps == sorted(gaps)
    assert gaps[2] < without / 3


@each_dtype
@pytest.mark.parametrize("reset", [1, 3])
def test_residual_starts_anew(dtype, reset):
    sender = Sender(LoCo(reset=reset), 700, dtype)
    for call, g in enumerate(gradients(700, 8, dtype)):
        fresh = Sender(LoCo(), 700, dtype)
        if call % reset == 0:
            assert same_bits(sender.send(g), fresh.send(g))
            assert same_bits(sender.residual, fresh.residual)
        else:
            assert not same_bits(sender.send(g), fresh.send(g))
    assert sender.state["calls"] == 8


@each_dtype
def test_without_a_residual_it_is_int4(dtype):
    x = normal(1000, dtype)
    x[[5, 400]] = np.nan, -np.inf
    assert same_bits(encode(LoCo(), x).payload, encode(Int4(), x).payload)
    assert same_bits(Sender(LoCo(), 1000, dtype).send(x), decode(Int4(), encode(Int4(), x), dtype).astype(float))


@each_dtype
@pytest.mark.parametrize("count", [256, 300])
def test_raw_blocks_lose_nothing(dtype, count):
    """What travels as it is leaves beta of the old residual, whatever it holds."""
    sender = Sender(LoCo(), count, dtype)
    sender.send(normal(count, dtype))
    before = sender.held
    bad = normal(count, dtype)
    bad[[3, count - 2]] = np.nan, np.inf
    sent = sender.send(bad)
    good = np.isfinite(bad)
    np.testing.assert_allclose(sent[good], (bad + before)[good], rtol=0, atol=1e-6 * np.abs(bad[good]).max())
    assert (np.abs(sender.held - 0.8 * before) <= peaks(before, BLOCK) / 254 * 1.01).all()
    assert np.isfinite(sender.held).all()


@each_dtype
@pytest.mark.parametrize("size", [1e-36, 1e-42])
def test_a_residual_that_fits_no_scale_is_dropped(dtype, size):
    sender = Sender(LoCo(), 256, dtype)
    sender.send(normal(256, dtype) * dtype.type(size / 1e3))
    assert np.isfinite(sender.state["scales"]).all()
    assert np.isfinite(sender.held).all()


def test_residual_is_a_byte_an_element():
    memory = Residuals().get("w", 1000, F32, LoCo())
    assert memory.residual.dtype == np.int8
    assert memory.residual.nbytes == 1000


def test_needs_a_key():
    assert LoCo().needs_key
    assert LoCo().feedback
    with pytest.raises(ValueError, match="no parameter 'feedback'"):
        as_codec("loco:feedback")


def test_another_block_size_starts_anew():
    sender = Sender(LoCo(block=64), 1000, F32)
    x = normal(1000)
    sender.send(x)
    sender.codec = LoCo(block=128)
    np.testing.assert_array_equal(sender.send(x), Sender(LoCo(block=128), 1000, F32).send(x))


def test_learning_rate_scales_what_waits():
    residuals = Residuals()
    residuals.learning_rate = 0.1
    memory = residuals.get("w", 256, F32, LoCo())
    residual, state = memory.part(slice(0, 256))
    LoCo().encode_feedback(normal(256), residual, np.empty(4096, np.uint8), state=state)
    before = state["scales"].copy()
    assert before.any()
    residuals.learning_rate = 0.05
    np.testing.assert_array_equal(state["scales"], 2 * before)


# ---------------------------------------------------------------------- in collectives

STEPS, SIZE, COUNT = 40, 3, 2000


def operand(rank, step):
    rng = np.random.default_rng([rank, step])
    return (np.random.default_rng(rank).standard_normal(COUNT) + 0.1 * rng.standard_normal(COUNT)).astype(np.float32)


def accumulate(comm, codec, algorithm, op, steps=range(STEPS), state=None):
    if state is not None:
        comm.residuals.load_state_dict(state[comm.rank])
    total = np.zeros(COUNT)
    for step in steps:
        x = operand(comm.rank, step)
        comm.allreduce(x, result := np.empty_like(x), op, codec=codec, algorithm=algorithm, key="w")
        total += result
    return total, comm.residuals.state_dict()


@pytest.mark.parametrize("algorithm", ["direct", "ring", "gathered"])
@pytest.mark.parametrize("op", ["sum", "avg"])
def test_accumulated_error_stays_small(algorithm, op):
    true = sum(operand(rank, step).astype(float) for rank in range(SIZE) for step in range(STEPS))
    true /= SIZE if op == "avg" else 1

    def spread(codec):
        totals = [total for total, _ in run(SIZE, accumulate, codec, algorithm, op)]
        assert same_bits(totals[0], totals[1])
        assert same_bits(totals[0], totals[2])
        return np.sqrt(np.mean((totals[0] - true) ** 2))

    assert spread("loco") < spread("int4") / 2.5


def test_sums_and_means_share_their_residual():
    """What waits of a mean is held as what waits of the sum is."""

    def program(comm):
        found = []
        for op in ("sum", "avg"):
            comm.residuals.reset()
            accumulate(comm, "loco", "direct", op, range(5))
            found.append(comm.residuals.state_dict()["states"]["w"])
        return found

    for sums, means in run(SIZE, program):
        for part, state in sums.items():
            np.testing.assert_allclose(state["scales"], means[part]["scales"], rtol=1e-3)
            assert state["calls"] == means[part]["calls"] == 5


def test_state_outlives_the_communicator():
    whole = run(SIZE, accumulate, "loco", "direct", "sum", range(6))
    half = run(SIZE, accumulate, "loco", "direct", "sum", range(3))
    rest = run(SIZE, accumulate, "loco", "direct", "sum", range(3, 6), [state for _, state in half])
    for rank in range(SIZE):
        np.testing.assert_array_equal(whole[rank][0], half[rank][0] + rest[rank][0])
        assert same_bits(*(found[rank][1]["residuals"]["w"] for found in (whole, rest)))


def test_another_number_of_ranks_starts_anew():
    states = [state for _, state in run(SIZE, accumulate, "loco", "direct", "sum", range(3))]
    fresh = reshard(states)
    again = run(2, accumulate, "loco", "direct", "sum", range(3), [fresh, fresh])
    anew = run(2, accumulate, "loco", "direct", "sum", range(3))
    assert same_bits(again[0][0], anew[0][0])


@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (ValueError, "block", 17),
        (ValueError, "beta", 1),
        (ValueError, "beta", -0.1),
        (ValueError, "beta", float("nan")),
        (TypeError, "beta", "0.8"),
        (TypeError, "beta", True),
        (ValueError, "reset", 0),
        (TypeError, "reset", 1.5),
    ],
)
def test_parameters_are_checked(error, parameter, value):
    with pytest.raises(error, match=f"{parameter}: .*{value!r}"):
        LoCo(**{parameter: value})
