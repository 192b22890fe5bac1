"""Sums that are rounded once, on a GPU: as the CPU holds them at every step, and as integers have them."""

import ml_dtypes
import numpy as np
import pytest
from device import to_device, to_host
from exact_sums import exact_sum

from collcomp.kernels import cpu, cuda
from collcomp.kernels.cpu.exact import EMPTY, LIMBS, WIDE

ELEMENTS = 35
FORMATS = {np.float32: np.float32, np.uint16: np.float16, np.int16: ml_dtypes.bfloat16}


def launch_all(real):
    """Every kernel once, for the compiler."""
    if real is np.float64:
        return  # what is summed is never float64
    kernels, total = cuda.load("exact"), Sums(100, 2)
    for dtype in FORMATS:
        x = to_device(np.zeros(100, dtype))
        kernels.first(x, 2, *total.on_device, ELEMENTS)
        kernels.add(x, 2, *total.on_device, ELEMENTS)
        kernels.finish(*total.on_device, x, ELEMENTS)
    kernels.add_partial(*total.on_device, 2, *total.on_device, ELEMENTS)
    base, window, _, limbs, special = total.on_device
    kernels.widen(base, window, limbs, special, ELEMENTS)


class Sums:
    """The sums of a message, on the device and on the CPU, whose arrays hold what was left there."""

    def __init__(self, count, headroom):
        self.headroom = headroom
        self.packets = [slice(low, min(low + ELEMENTS, count)) for low in range(0, count, ELEMENTS)]
        self.bases = [EMPTY] * len(self.packets)
        self.arrays = (
            np.full(count, 0x5555555555555555),
            np.ones(count, np.uint8),
            np.full((count, LIMBS), -0x5555555555555555),
            np.full(count, 99, np.uint8),
        )
        self.on_device = tuple(map(to_device, (np.full(len(self.packets), EMPTY, np.int32), *self.arrays)))

    def add(self, x, name="add"):
        add = getattr(cpu.load("exact"), name)
        for p, packet in enumerate(self.packets):
            base = () if name == "first" else (self.bases[p],)
            self.bases[p] = add(x[packet], self.headroom, *base, *self.held(packet))
        getattr(cuda.load("exact"), name)(to_device(x), self.headroom, *self.on_device, ELEMENTS)
        return self.compared()

    def first(self, x):
        self.arrays[1][:] = 77
        return self.add(x, "first")

    def add_partial(self, other):
        add = cpu.load("exact").add_partial
        for p, packet in enumerate(self.packets):
            given = other.bases[p], *other.held(packet)
            self.bases[p] = add(*given, self.headroom, self.bases[p], *self.held(packet))
        cuda.load("exact").add_partial(*other.on_device, self.headroom, *self.on_device, ELEMENTS)
        return self.compared()

    def widen(self):
        for p, packet in enumerate(self.packets):
            window, _, limbs, special = self.held(packet)
            self.bases[p] = cpu.load("exact").widen(self.bases[p], window, limbs, special)
        base, window, _, limbs, special = self.on_device
        cuda.load("exact").widen(base, window, limbs, special, ELEMENTS)
        return self.compared()

    def finish(self, dtype):
        out, device = np.empty(len(self.arrays[0]), dtype), to_device(np.empty(len(self.arrays[0]), dtype))
        for p, packet in enumerate(self.packets):
            cpu.load("exact").finish(self.bases[p], *self.held(packet), out[packet])
        cuda.load("exact").finish(*self.on_device, device, ELEMENTS)
        assert to_host(device).tobytes() == out.tobytes()
        return out

    def held(self, packet):
        return tuple(array[packet] for array in self.arrays)

    def compared(self):
        """`self`, if the device holds what the CPU does, of all that is in use."""
        base, *arrays = map(to_host, self.on_device)
        assert base.tolist() == self.bases
        assert np.array_equal(arrays[1], self.arrays[1])
        for held, packet in zip(self.bases, self.packets, strict=True):
            for i in (2, 3) if held == WIDE else () if held == EMPTY else (0,):
                assert np.array_equal(arrays[i][packet], self.arrays[i][packet])
        return self


def operands(ranks, dtype):
    """Messages whose packets differ in all that decides how they are held; the last is short."""
    rng = np.random.default_rng(ranks)
    x = rng.standard_normal((ranks, 8 * ELEMENTS + 5))
    parts = [slice(p * ELEMENTS, (p + 1) * ELEMENTS) for p in range(9)]
    x[:, parts[1]] = np.where(rng.random((ranks, ELEMENTS)) < 0.8, -0.0, 0.0)
    x[1:, parts[2]] *= 2.0 ** rng.integers(-30, 20, (ranks - 1, ELEMENTS))  # the window has to move
    x[:, parts[3]] *= 2.0 ** rng.integers(-149, 128, (ranks, ELEMENTS))
    x[:, parts[4]] *= 2.0**-140
    x[-1, parts[5]] = -x[:-1, parts[5]][0]
    x[1:-1, parts[5]] = 0
    x[0, parts[6]], x[1, parts[6]] = 0.0, 2.0**-14
    x[2, parts[6]] = 3e38  # beyond the largest number, from one rank and then from two
    x[3, parts[6]] = rng.choice([3e38, -3e38, 1e20], ELEMENTS)
    special = parts[7].start
    x[1, special : special + 6] = [np.nan, np.inf, -np.inf, np.inf, -0.0, 2.0**-149]
    x[2, special : special + 6] = [1.0, np.inf, -1.0, -np.inf, -0.0, -(2.0**-149)]
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(FORMATS[dtype])


@pytest.mark.parametrize("dtype", FORMATS)
def test_sums_of_ranks(dtype):
    given = operands(4, dtype)
    x = given.view(dtype)
    total = Sums(x.shape[1], 3).first(x[0])
    for operand in x[1:]:
        total.add(operand)
    if dtype == np.float32:
        assert WIDE in total.bases
        assert EMPTY in total.bases
    found, wanted = total.finish(dtype).view(given.dtype), exact_sum(list(given))
    numbers = ~np.isnan(wanted)
    assert np.array_equal(np.isnan(found), ~numbers)
    assert found[numbers].tobytes() == wanted[numbers].tobytes()


def test_partial_sums():
    """Narrow and wide, empty, and windows of other bases, either way."""
    given = operands(6, np.float32)
    leaves = [Sums(given.shape[1], 3).first(given[0]).add(given[1]), Sums(given.shape[1], 3).first(given[2])]
    leaves.append(Sums(given.shape[1], 3).first(given[3]).add(given[4]).add(given[5]))
    for order in ([0, 1, 2], [2, 0, 1]):
        root = Sums(given.shape[1], 2)
        for i in order:
            root.add_partial(leaves[i])
        found, wanted = root.finish(np.float32), exact_sum(list(given))
        numbers = ~np.isnan(wanted)
        assert found[numbers].tobytes() == wanted[numbers].tobytes()
    assert root.widen().finish(np.float32).tobytes() == found.tobytes()


@pytest.mark.parametrize("shift", [-80, -58, 36])
def test_windows_that_do_not_fit(shift):
    """Of which 56 bits in a row are set: the CPU rounds them up to a power of two."""
    x = np.resize(np.array([1 - 2.0**-24, 2.0**-24 - 2.0**-48, 2.0**-48 - 2.0**-56], np.float32), ELEMENTS)
    one, other = Sums(ELEMENTS, 2).first(x), Sums(ELEMENTS, 2).first(np.full(ELEMENTS, 2.0**shift, np.float32))
    assert one.bases == [-57]
    Sums(ELEMENTS, 2).add_partial(one).add_partial(other).add_partial(one)
    one.add(np.full(ELEMENTS, 2.0**shift, np.float32))
    assert one.bases == [-59 if shift == -58 else WIDE]


def test_empty_messages():
    Sums(0, 0).first(np.zeros(0, np.float32)).finish(np.float32)
