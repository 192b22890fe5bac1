"""Sums that are rounded once, against sums of Python's integers."""

import math

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collcomp.kernels.cpu import exact
from collcomp.kernels.cpu.exact import EMPTY, LIMBS, WIDE


class Format:
    """Bits of a float as an integer that counts the format's smallest subnormal number, and back."""

    def __init__(self, dtype, precision, exponent_bits):
        self.dtype = np.dtype(dtype)
        self.stored = precision - 1
        self.infinity = ((1 << exponent_bits) - 1) << self.stored
        self.nan = self.infinity | 1 << (self.stored - 1)
        self.sign = 1 << (self.stored + exponent_bits)

    def codes(self, x):
        return [int(code) for code in np.asarray(x, self.dtype).view(f"u{self.dtype.itemsize}")]

    def array(self, codes):
        return np.asarray(codes, f"u{self.dtype.itemsize}").view(self.dtype)

    def encode(self, values):
        """Nearest numbers of the format to float64 `values`."""
        return self.array([self.round(self.count(value), math.copysign(1, value) < 0) for value in values])

    def count(self, value):
        """Float64 `value` in smallest subnormals, which must be whole."""
        bias = (self.infinity >> self.stored) // 2
        scaled = math.ldexp(value, bias - 1 + self.stored)
        assert math.isinf(scaled) or scaled == int(scaled)
        return int(scaled)

    def decode(self, code):
        exponent, mantissa = (code & (self.sign - 1)) >> self.stored, code & ((1 << self.stored) - 1)
        size = (mantissa | 1 << self.stored) << (exponent - 1) if exponent else mantissa
        return -size if code & self.sign else size

    def round(self, total, negative_zero=False):
        size, sign = abs(total), self.sign if total < 0 or (total == 0 and negative_zero) else 0
        dropped = max(size.bit_length() - self.stored - 1, 0)
        kept, rest = size >> dropped, size & ((1 << dropped) - 1)
        half = 1 << dropped >> 1
        kept += dropped > 0 and (rest > half or (rest == half and kept & 1))
        # A mantissa of all ones that is rounded up carries into the exponent.
        return sign | min((dropped << self.stored) + kept, self.infinity)

    def sum(self, codes):
        sizes = [code & (self.sign - 1) for code in codes]
        infinite = {code for code in codes if code & (self.sign - 1) == self.infinity}
        if max(sizes) > self.infinity or len(infinite) == 2:
            return self.nan
        if infinite:
            return infinite.pop()
        return self.round(sum(map(self.decode, codes)), all(code & self.sign for code in codes))


FLOAT32, FLOAT16, BFLOAT16 = Format("f4", 24, 8), Format("u2", 11, 5), Format("i2", 8, 8)
FORMATS = pytest.mark.parametrize("form", [FLOAT32, FLOAT16, BFLOAT16], ids=["float32", "float16", "bfloat16"])


def floats(*values):
    return np.array(values, np.float32)


class Sum:
    """A sum of packets and of other sums, whose arrays hold what was left there."""

    def __init__(self, form, count, headroom):
        self.form, self.headroom, self.base = form, headroom, None
        self.window = np.full(count, 0x5555555555555555)
        self.signs = np.full(count, 77, np.uint8)
        self.limbs = np.full((count, LIMBS), -0x5555555555555555)
        self.special = np.full(count, 99, np.uint8)

    @property
    def arrays(self):
        return self.window, self.signs, self.limbs, self.special

    def add(self, x):
        if self.base is None:
            self.base = exact.first(x, self.headroom, *self.arrays)
        else:
            self.base = exact.add(x, self.headroom, self.base, *self.arrays)
        return self

    def add_partial(self, other):
        if self.base is None:
            self.base, self.signs[:] = exact.EMPTY, 1
        self.base = exact.add_partial(other.base, *other.arrays, self.headroom, self.base, *self.arrays)
        return self

    def finish(self):
        out = np.empty(self.window.size, self.form.dtype)
        exact.finish(self.base, *self.arrays, out)
        return out


def headroom_of(count):
    return (count - 1).bit_length()


def summed(form, packets):
    total = Sum(form, packets.shape[1], headroom_of(len(packets)))
    for x in packets:
        total.add(x)
    return total


def expected(form, packets):
    return form.array([form.sum(form.codes(column)) for column in np.ascontiguousarray(packets.T)])


def assert_bits(form, actual, wanted):
    assert [hex(c) for c in form.codes(actual)] == [hex(c) for c in form.codes(wanted)]


def check(form, packets, generator):
    """The right sum, in two orders and in a tree; return how the first is held."""
    wanted = expected(form, packets)
    total = summed(form, packets)
    assert_bits(form, total.finish(), wanted)
    assert_bits(form, summed(form, generator.permutation(packets)).finish(), wanted)
    assert_bits(form, tree(form, generator.permutation(packets), headroom_of(len(packets)), generator).finish(), wanted)
    return total.base


def tree(form, packets, headroom, generator):
    """Switches, each of which adds some packets and the sums of switches below it."""
    node = Sum(form, packets.shape[1], headroom)
    while len(packets):
        taken = int(generator.integers(1, len(packets) + 1))
        if taken == 1 or generator.random() < 0.3:
            for x in packets[:taken]:
                node.add(x)
        elif taken < len(packets) or generator.random() < 0.5:
            node.add_partial(tree(form, packets[:taken], headroom, generator))
        else:
            continue
        packets = packets[taken:]
    return node


def random_codes(form, generator, shape, low, high):
    """Random signs and mantissas, exponent fields from `low` up to `high`."""
    exponents = generator.integers(low, high, shape, endpoint=True)
    mantissas = generator.integers(0, 1 << form.stored, shape)
    # Fewer set bits, more zeros and ties.
    mantissas &= -1 << generator.integers(0, form.stored + 1, shape)
    signs = generator.integers(0, 2, shape) * form.sign
    return form.array(signs | exponents << form.stored | mantissas)


COUNT = 13


@FORMATS
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_packets(form, data):
    """Of all magnitudes, of few, subnormal ones, large ones, and with specials or without."""
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    workers = data.draw(st.integers(1, 64))
    most = (form.infinity >> form.stored) - 1
    high = data.draw(st.integers(0, most) | st.just(most))
    low = max(0, high - data.draw(st.sampled_from([0, 1, 3, 10, 30, 60, most])))
    packets = random_codes(form, generator, (workers, COUNT), low, high)
    zeros = generator.random(packets.shape) < data.draw(st.sampled_from([0, 0.5, 0.99]))
    packets[zeros] = form.array([0, form.sign])[generator.integers(0, 2, packets.shape)][zeros]
    if data.draw(st.booleans()):
        negative = form.array(np.array(form.codes(packets.reshape(-1))) ^ form.sign).reshape(packets.shape)
        packets = np.concatenate([packets, negative])[data.draw(st.integers(0, 2)) :]
        if not len(packets):
            return
    if data.draw(st.integers(0, 3)) == 0:
        special = form.array([form.infinity, form.infinity | form.sign, form.infinity + 1, form.nan | form.sign])
        rows = generator.integers(0, len(packets), 6)
        packets[rows, generator.integers(0, COUNT, 6)] = special[generator.integers(0, 4, 6)]
    check(form, packets, generator)


@FORMATS
@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_bits(form, data):
    workers, seed = data.draw(st.integers(1, 64)), data.draw(st.integers(0, 2**32))
    generator = np.random.default_rng(seed)
    packets = form.array(generator.integers(0, 2 * form.sign, (workers, COUNT)))
    check(form, packets, generator)


@FORMATS
@pytest.mark.parametrize("spread", [1, 20, 250])
def test_many_workers(form, spread):
    generator = np.random.default_rng(spread)
    most = (form.infinity >> form.stored) - 1
    low = max(most // 2 - spread, 0)
    packets = random_codes(form, generator, (3000, 5), low, min(most // 2 + 1, most))
    base = check(form, packets, generator)
    assert (base == WIDE) == (form is not FLOAT16 and spread == 250)


def test_gradients_are_narrow_and_leave_wide_memory_alone():
    generator = np.random.default_rng(0)
    packets = (generator.standard_normal((8, 1000)) * 1e-3).astype(np.float32)
    total = summed(FLOAT32, packets)
    assert total.base not in (EMPTY, WIDE)
    fresh = Sum(FLOAT32, 1000, 3)
    assert (total.limbs == fresh.limbs).all()
    assert (total.special == fresh.special).all()
    assert_bits(FLOAT32, total.finish(), expected(FLOAT32, packets))


def test_agrees_with_fsum():
    """Where float64 holds the sum exactly, so that rounding it to float32 is the first rounding."""
    packets = np.random.default_rng(0).integers(-(2**24), 2**24, (50, 200)).astype(np.float32) / 2**9
    wanted = [math.fsum(column) for column in packets.T.astype(np.float64)]
    np.testing.assert_array_equal(summed(FLOAT32, packets).finish(), np.array(wanted, np.float32))


@FORMATS
@pytest.mark.parametrize("finite", [0.0, 1.0, "smallest"])
def test_specials(form, finite):
    inf, nan, sign = form.infinity, form.nan, form.sign
    one = form.codes(form.encode([1.0]))[0]
    other = 1 if finite == "smallest" else form.codes(form.encode([finite]))[0]
    columns = [
        ((nan,), nan),
        ((nan | sign,), nan),
        ((inf + 1,), nan),
        ((nan, inf), nan),
        ((inf | sign, nan), nan),
        ((inf, inf | sign), nan),
        ((inf,), inf),
        ((inf, inf), inf),
        ((inf | sign,), inf | sign),
        ((one | sign, inf), inf),
        ((inf - 1, inf | sign), inf | sign),
    ]
    packets = np.zeros((4, len(columns)), form.dtype)
    packets[1] = form.array([other])[0]
    for i, (codes, _) in enumerate(columns):
        packets[2 : 2 + len(codes), i] = form.array(codes)
    for order in ([0, 1, 2, 3], [2, 3, 0, 1], [3, 1, 2, 0]):
        assert_bits(form, summed(form, packets[order]).finish(), form.array([bits for _, bits in columns]))


@FORMATS
@pytest.mark.parametrize("wide", [False, True])
def test_zeros(form, wide):
    minus, one = form.sign, form.codes(form.encode([1.0]))[0]
    columns = [(0, 0), (minus, minus), (minus, 0), (0, minus), (one, one | minus), (one | minus, one), (minus, one)]
    if wide:
        columns.append((form.infinity, 0))
    packets = form.array(columns).T.copy()
    total = summed(form, packets)
    assert (total.base == WIDE) == wide
    assert form.codes(total.finish())[:7] == [0, minus, 0, 0, 0, 0, one]


@FORMATS
def test_zeros_leave_the_base_open(form):
    zeros, x = np.zeros(3, form.dtype), form.encode([1.0, -2.0, 0.0])
    minus = form.array([form.sign] * 3)
    total = Sum(form, 3, 3).add(minus).add(minus)
    assert total.base == EMPTY
    assert_bits(form, total.finish(), minus)
    assert_bits(form, Sum(form, 3, 3).add_partial(total).finish(), minus)
    total.add(zeros)
    assert_bits(form, total.finish(), zeros)
    partial = Sum(form, 3, 3).add(zeros).add_partial(total).add_partial(Sum(form, 3, 3).add(x)).add_partial(total)
    total.add(x).add(zeros)
    for held in (total, partial):
        assert held.base not in (EMPTY, WIDE)
        assert_bits(form, held.finish(), x)


def test_empty_packet():
    nothing = np.empty(0, np.float32)
    assert Sum(FLOAT32, 0, 0).add(nothing).add(nothing).finish().size == 0


@FORMATS
@pytest.mark.parametrize("exponent", [None, -53, -120])
def test_ties(form, exponent):
    """A tie, and what lies next to it: where the tiny addend still fits the window, and where it does not."""
    tiny = 0.0 if exponent is None else 2.0 ** max(exponent, -24 if form is FLOAT16 else -149)
    ulp = 2.0**-form.stored
    columns: list[tuple[float, ...]] = [
        (m, half * ulp / 2, s * tiny) for m in (1.0, 1 + ulp, 2 - ulp) for half in (-1, 1) for s in (-1, 0, 1)
    ]
    columns += [tuple(-value for value in column) for column in columns]
    packets = np.array([form.encode(column) for column in columns]).T.copy()
    total = summed(form, packets)
    assert (total.base == WIDE) == (tiny == 2.0**-120)
    assert_bits(form, total.finish(), expected(form, packets))
    check(form, packets, np.random.default_rng(0))
    assert_bits(form, total.finish()[3:6], form.encode([1.0, 1.0, 1 + ulp if tiny else 1.0]))


def test_ties_at_any_place_of_the_limbs():
    columns = [(math.inf, 0.0, 0.0)]
    for exponent in range(-37, 0):
        for distance in range(25, 110):
            tiny = 2.0 ** (exponent - distance)
            columns += [(2.0**exponent, 2.0 ** (exponent - 24), tiny), (2.0**exponent, 2.0 ** (exponent - 24), -tiny)]
    packets = np.array(columns, np.float32).T.copy()
    total = summed(FLOAT32, packets)
    assert total.base == WIDE
    assert_bits(FLOAT32, total.finish(), expected(FLOAT32, packets))


@pytest.mark.parametrize("sign", [1, -1])
def test_partial_sums_beyond_the_largest_number(sign):
    """Are no infinities, whether narrow, carried over into limbs, or in limbs from the start."""
    largest = sign * np.finfo(np.float32).max
    moved, wide = Sum(FLOAT32, 2, 10), Sum(FLOAT32, 2, 10).add(floats(0.0, math.inf))
    for count in range(1, 501):
        for total in (moved, wide):
            sums = total.add(floats(largest, largest)).finish()
            assert sums[0] == (largest if count == 1 else sign * math.inf)
    assert (moved.base == WIDE, wide.base == WIDE) == (False, True)
    for _ in range(499):
        for total in (moved, wide):
            total.add(floats(-largest, 2.0**-149))
    assert moved.base == WIDE
    assert moved.finish()[0] == wide.finish()[0] == largest


@FORMATS
def test_overflow(form):
    largest = form.infinity - 1
    half = form.codes(form.encode([math.ldexp(1.0, (largest >> form.stored) - form.infinity // (2 << form.stored))]))[0]
    half -= (form.stored + 1) << form.stored  # half of the largest number's last place
    below, minus = half - 1, form.sign
    rows = [
        ([largest, half], form.infinity),
        ([largest, below], largest),
        ([largest | minus, half | minus], form.infinity | minus),
        ([largest, largest], form.infinity),
        ([largest, largest, largest | minus], largest),
        ([largest, half, 1 | minus], largest),
        ([largest, below, 1], largest),
    ]
    packets = form.array([codes + [0] * (3 - len(codes)) for codes, _ in rows]).T.copy()
    wanted = form.array([code for _, code in rows])
    assert_bits(form, expected(form, packets), wanted)
    check(form, packets, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [2.0**-60, 2.0**40, math.inf, math.nan, -math.inf])
def test_from_narrow_to_wide(bad):
    """An element that does not fit leaves what was added of its packet before, and of others, as it should."""
    packets = np.random.default_rng(0).standard_normal((6, 200)).astype(np.float32)
    packets[3, 77] = bad
    total, bases = Sum(FLOAT32, 200, 3), []
    for x in packets:
        bases.append(total.add(x).base == WIDE)
    assert bases == [False] * 3 + [True] * 3
    wanted = expected(FLOAT32, packets)
    assert_bits(FLOAT32, total.finish(), wanted)
    # Halves of a tree: a narrow one and a wide one, either way.
    halves = [summed(FLOAT32, packets[:3]), summed(FLOAT32, packets[3:])]
    assert [half.base == WIDE for half in halves] == [False, True]
    for one, other in (halves, halves[::-1]):
        root = Sum(FLOAT32, 200, 1).add_partial(one).add_partial(other)
        assert root.base == WIDE
        assert_bits(FLOAT32, root.finish(), wanted)


def narrow_sum(values, headroom):
    total = Sum(FLOAT32, 1, headroom)
    for value in values:
        total.add(floats(value))
    return total


@pytest.mark.parametrize("small", [[], [2.0**-58]])
def test_limit_of_a_window(small):
    """As many of the largest addends as there is headroom for; one step larger does not fit."""
    # Windows are of 62 bits; 6 are left for larger addends unless small ones take them.
    limit = 2.0 if small else 2.0**7
    largest = limit * (1 - 2.0**-24)
    for sign in (1, -1):
        values = [sign * value for value in [1.0, *small] + [largest] * (7 - len(small))]
        total = narrow_sum(values, headroom=3)
        assert total.base not in (EMPTY, WIDE)
        assert_bits(FLOAT32, total.finish(), expected(FLOAT32, np.array(values, np.float32)[:, None]))
        total = narrow_sum([sign, *small, sign * limit], headroom=3)
        assert total.base == WIDE
        assert total.finish()[0] == sign * np.float32(1 + limit)


@pytest.mark.parametrize(("small", "wide"), [(-55, False), (-58, False), (-59, False), (-60, True)])
def test_window_makes_room_for_small_addends(small, wide):
    """Up to 62 bits between the smallest and the largest, less the headroom."""
    for values in ([-1.0, 2.0**small, 1.0, 0.0], [1.0, -(2.0**small), 0.0, -1.0]):
        total = narrow_sum(values, headroom=2)
        assert (total.base == WIDE) == wide
        assert total.finish()[0] == math.fsum(values)
    both = Sum(FLOAT32, 2, 2).add(floats(-1.0, 2.0**small))
    assert (both.base == WIDE) == wide
    assert_bits(FLOAT32, both.add(floats(1.0, 1.0)).finish(), floats(0.0, 1.0))


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("shift", [-80, -20, -5, 0, 5, 20, 100])
def test_partials_of_other_bases(shift, fine):
    """They are rescaled where that is exact and small enough; else the sum becomes wide."""
    x, y = floats(1, 3), floats(2.0**shift, -(2.0**shift))
    one, other = Sum(FLOAT32, 2, 2).add(x), Sum(FLOAT32, 2, 2).add(y)
    packets = [x, y]
    if fine:  # two bits above the smallest that fit the window of `other`
        packets.append(floats(0, math.ldexp(1.0, other.base + 2)))
        other.add(packets[-1])
    root = Sum(FLOAT32, 2, 2).add_partial(one).add_partial(other)
    assert other.base == one.base + shift - 1
    assert (root.base == WIDE) == (shift > 6 or shift == -80 or (fine and shift == -20))
    assert_bits(FLOAT32, root.finish(), expected(FLOAT32, np.array(packets)))


def test_partials_too_large_for_the_window():
    """Because their switch counted fewer workers than the one that adds them."""
    leaf = Sum(FLOAT32, 1, 1).add(floats(1.0)).add(floats(127.0))
    one = Sum(FLOAT32, 1, 4).add(floats(1.0))
    zero = Sum(FLOAT32, 1, 4).add(floats(0.0))
    assert WIDE not in (leaf.base, one.base)
    for root in (Sum(FLOAT32, 1, 4).add_partial(leaf).add_partial(one), one.add_partial(leaf)):
        assert root.base == WIDE
        assert root.finish()[0] == 129
    assert zero.add_partial(leaf).base == WIDE
    assert zero.finish()[0] == 128


@pytest.mark.parametrize("value", [2.0**-149, -(2.0**-149), 1 - 2.0**-24, -(2.0**99) * (2 - 2.0**-23)])
def test_limbs_hold_2_to_the_28_addends(value):
    """All of which change the same limbs, by as much as can be."""
    x = floats(value, math.inf)
    total = Sum(FLOAT32, 2, 0).add(x)
    for _ in range(27):
        total = Sum(FLOAT32, 2, 0).add_partial(total).add_partial(total)
    # 2**27 of one and as many of the other; then all but 2**28 times the small difference cancels.
    less = np.nextafter(x, np.float32(0))
    other = Sum(FLOAT32, 2, 0).add(-less)
    for _ in range(27):
        other = Sum(FLOAT32, 2, 0).add_partial(other).add_partial(other)
    assert total.finish()[0] == np.float32(value * 2.0**27)
    total.add_partial(other)
    difference = (np.float64(value) - np.float64(less[0])) * 2.0**27
    assert total.finish()[0] == np.float32(difference)
    assert np.isinf(Sum(FLOAT32, 2, 0).add(floats(3e38, 3e38)).add_partial(total).finish()[1])


def test_wide_sums_in_slices():
    packets = np.random.default_rng(0).standard_normal((5, 100)).astype(np.float32)
    packets[1, 50] = 1e-40
    total = summed(FLOAT32, packets[:2])
    narrow = summed(FLOAT32, packets[2:4])
    assert (total.base, narrow.base == WIDE) == (WIDE, False)
    out = np.empty(100, np.float32)
    for start in (0, 37, 74):
        part = slice(start, start + 37)
        arrays = [array[part] for array in total.arrays]
        exact.add_partial(narrow.base, *(array[part] for array in narrow.arrays), 3, WIDE, *arrays)
        exact.add(packets[4, part], 3, WIDE, *arrays)
        exact.finish(WIDE, *arrays, out[part])
    assert_bits(FLOAT32, out, expected(FLOAT32, packets))


@numba.njit
def reduce(packets, out, headroom, window, signs, limbs, special):
    base = exact.first(packets[0], headroom, window, signs, limbs, special)
    for i in range(1, len(packets)):
        base = exact.add(packets[i], headroom, base, window, signs, limbs, special)
    exact.finish(base, window, signs, limbs, special, out)


@FORMATS
def test_called_from_compiled_code(form):
    packets = random_codes(form, np.random.default_rng(0), (6, 50), 10, 15)
    out = np.empty(50, form.dtype)
    reduce(packets, out, 3, *Sum(form, 50, 3).arrays)
    assert_bits(form, out, expected(form, packets))
