"""Homomorphic compression: the sum of what ranks encoded is had by adding small integers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from collcomp.codecs.bit_blocks import BitBlocks, Sections
from collcomp.codecs.checks import as_number, check_flag, check_integer
from collcomp.codecs.rotated import check_rotation_block, diagonal_beside, rotated_size
from collcomp.codecs.streams import random_key
from collcomp.devices import counters, device_of, empty, host_copy, on_device, to_device
from collcomp.frame import Frame
from collcomp.kernels import cuda, kernels_for
from collcomp.kernels.cpu import PACKED

__all__ = ["THC", "clamp_limit", "lookup_table"]

_SMALLEST_P = 1e-12


def clamp_limit(p: float) -> float:
    """The magnitude that a standard normal value exceeds with probability `p`."""
    return -NormalDist().inv_cdf(p / 2)


@functools.lru_cache
def lookup_table(bits: int, granularity: int, p: float) -> tuple[int, ...]:
    """The ``2**bits`` integers from 0 to `granularity` that a clamped normal value is rounded to with the least error.

    0 ... `granularity` stands for -t ... t, where t is `clamp_limit` of `p`. A value v between two neighbours a and c
    of the table becomes one of them at random, without bias: its expected squared error is ``(v - a) (c - v)``. A
    dynamic program minimises the mean of that over all tables that are symmetric, as the values are.
    """
    limit = clamp_limit(p)
    places = np.linspace(-limit, limit, granularity + 1)
    # The integrals of the normal density times 1, x and x**2 up to each place.
    density = np.exp(-(places**2) / 2) / math.sqrt(2 * math.pi)
    ones = np.array([math.erf(place / math.sqrt(2)) / 2 for place in places])
    integrals = (ones, -density, ones - places * density)
    m0, m1, m2 = (integral - integral[:, None] for integral in integrals)
    a, c = places[:, None], places
    costs = (a + c) * m1 - a * c * m0 - m2
    costs[np.tril_indices(granularity + 1)] = np.inf
    best = np.full(granularity + 1, np.inf)
    best[0] = 0
    origins = []
    for _ in range(2 ** (bits - 1) - 1):
        totals = _rounded(best[:, None] + costs)
        origins.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    everywhere = np.arange(granularity + 1)
    half = [int(_rounded(2 * best + costs[everywhere, granularity - everywhere]).argmin())]
    for origin in reversed(origins):
        half.append(int(origin[half[-1]]))
    return (*reversed(half), *(granularity - integer for integer in half))


def _rounded(costs: np.ndarray) -> np.ndarray:
    """Ties are ties on every machine, whatever the last bits of its exponential function."""
    return np.round(costs, 12)


@functools.lru_cache
def _tables(table: tuple[int, ...]) -> np.ndarray:
    """What the kernels climb: thresholds, and what is added at each, modulo 256."""
    integers, numbers = np.array(table), np.arange(len(table))
    gaps = np.append(np.diff(integers), 1)
    climbs = ((integers, integers), (integers, gaps), (integers, numbers), (numbers, integers))
    return np.array([(inputs, np.diff(outputs, prepend=0)) for inputs, outputs in climbs]).astype(np.uint8)


@functools.lru_cache
def _lookup(table: tuple[int, ...], device: str) -> Any:
    """What the kernels for devices look up instead."""
    integers = np.array(table)
    numbers = np.searchsorted(integers, np.arange(256), side="right") - 1
    gaps = np.append(np.diff(integers), 1)
    values = np.zeros(256, np.int32)
    values[: len(table)] = table
    cells = integers[numbers] | gaps[numbers] << 8 | numbers << 16
    return to_device(np.concatenate([cells.astype(np.int32), values]))


@dataclass(frozen=True)
class THC(BitBlocks):
    """Tensor homomorphic compression: blocks are rotated and rounded to a table of integers, which ranks just add.

    A block of norm N and d elements is rotated as by `Hadamard`, so that its values are about normally distributed with
    standard deviation ``N / sqrt(d)``; magnitudes above t standard deviations, a share of `p`, are clamped. Then -t ...
    t is mapped to 0 ... `granularity`, and each value becomes one of ``2**bits`` integers of that range, at random
    without bias: those with the least expected error. Frames carry the numbers of the integers, `bits` each.

    Reductions first agree on the largest norm of each block, then add the integers of all ranks, in 8 bits each where
    ``ranks * granularity`` is below 256, in 16 bits up to 65535: nothing is decoded on the way. The random signs
    of the rotation are drawn anew for each.

    The mean squared error of normal values is 0.020 of their mean square for the defaults, of which 0.007 come from
    clamping and are the same on all ranks for equal values, and 0.013 from rounding, independently on each rank. An
    element's error is at most the norm of its block.

    Blocks with a NaN, an infinity, a magnitude of at least 2**90 or a norm below 2**-100 (but not 0) on any rank are
    not encoded: they travel as they are, and sums of such blocks are plain sums. -0.0 may become 0.0.

    Parameters
    ----------
    bits : int
        Of a code, 1 to 8.
    granularity : int
        The largest integer, from ``2**bits - 1`` to 255: with more, the table fits values better, and sums are longer.
    p : float
        Share of the values that is clamped, 1e-12 to 0.5.
    block : int
        Elements that are rotated together and share a norm; a power of two from 256 to 65536.
    seed : int
        Of rotation and rounding.
    feedback : bool
        Carry what was rounded off and clamped into the next call with the same key.

    Examples
    --------
    >>> THC(granularity=51, feedback=True).spec
    'thc:granularity=51,feedback'

    References
    ----------
    Li, Ben Basat, Vargaftik, Lao, Xu, Mitzenmacher and Yu, "THC: Accelerating distributed deep learning using tensor
    homomorphic compression", NSDI 2024. There all of a tensor has one norm; with one a block, tensors of different
    scales can be reduced together.
    """

    codec_id: ClassVar[str] = "thc"
    number: ClassVar[int] = 23
    summary: ClassVar[str] = "rotated blocks as integers that ranks add without decoding, 4 bits an element"
    summable: ClassVar[bool] = True
    on_devices: ClassVar[bool] = True

    bits: int = 4
    granularity: int = 30
    p: float = 1 / 32
    block: int = 1024
    seed: int = 0
    feedback: bool = False

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1)
        if self.bits > 8:
            raise ValueError(f"bits: expected at most 8, got {self.bits!r}")
        check_integer("granularity", self.granularity, 2**self.bits - 1)
        if self.granularity > 255:
            raise ValueError(f"granularity: expected at most 255, got {self.granularity!r}")
        if not _SMALLEST_P <= as_number("p", self.p) <= 0.5:
            raise ValueError(f"p: expected a number from {_SMALLEST_P} to 0.5, got {self.p!r}")
        check_rotation_block(self.block)
        check_integer("seed", self.seed, 0)
        check_flag("feedback", self.feedback)

    @property
    def width(self) -> int:
        """Bits of a code."""
        return self.bits

    @property
    def table(self) -> tuple[int, ...]:
        """The integers that codes stand for."""
        return lookup_table(self.bits, self.granularity, self.p)

    def sum_dtype(self, size: int) -> np.dtype:
        """The dtype that the integers of `size` ranks are added in."""
        return np.min_scalar_type(size * self.granularity)

    def _code_count(self, count: int) -> int:
        return count - count % self.block + rotated_size(count, self.block)

    def _run(
        self, src: np.ndarray, residual: np.ndarray | None, kept: np.ndarray | None, sections: Sections, stream: int
    ) -> None:
        counted = (counters(),) if on_device(src) else ()
        kernels_for(src, "thc").encode(
            src, residual, kept, *sections, *self._rotation(src, 0), *self._lattice(src, True), self.bits,
            random_key(self.seed, stream), *counted,
        )  # fmt: skip

    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        self._unpack(frame, dst, False)

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        self._unpack(frame, acc, True)

    def _unpack(self, frame: Frame, dst: np.ndarray, adds: bool) -> None:
        sections = self._checked_sections(frame)
        if dst.size:
            arguments = (*self._rotation(dst, 0), *self._lattice(dst, False), self.bits, adds, dst)
            kernels_for(dst, "thc").decode(*sections, *arguments)

    def reduction(
        self,
        src: np.ndarray,
        dst: np.ndarray,
        size: int,
        *,
        shared: int,
        stream: int,
        residual: np.ndarray | None,
        state: dict[str, np.ndarray],
    ) -> Iterator[tuple[np.ndarray, str]]:
        """Rounds: the largest norms; the sums of integers; if a norm is infinite, the plain sums of such blocks."""
        kernels = kernels_for(src, "thc")
        norms = empty(self._blocks(src.size), np.dtype(np.float32), src)
        if src.size:
            kernels.measure(src, residual, norms, self.block)
        yield norms, "max"
        values = src if residual is None else residual
        raw = [slice(b * self.block, (b + 1) * self.block) for b in np.flatnonzero(np.isinf(host_copy(norms)))]
        plain = np.concatenate([values[where] for where in raw]) if raw else None
        sums = empty(self._code_count(src.size), self.sum_dtype(size), src)
        rotation = self._rotation(src, shared)
        if src.size:
            lattice = self._lattice(src, False)
            kernels.quantise(src, residual, norms, sums, *rotation, *lattice, random_key(self.seed, stream))
        yield sums, "sum"
        if src.size:
            kernels.decode_sums(sums, norms, size * self.granularity / 2, *rotation, self._reach(), dst)
        if plain is None:
            return
        yield plain, "sum"
        for number, where in enumerate(raw):
            dst[where] = plain[number * self.block : (number + 1) * self.block]
            if residual is not None:
                residual[where] = 0

    def _rotation(self, values: np.ndarray, stream: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The diagonals for whole blocks and for the last one, and room for what is rotated."""
        key, room = random_key(self.seed, stream), self.block
        if on_device(values):
            room = cuda.load("thc").tile_size(self._blocks(values.size), self._code_count(values.size), self.block)
        whole, last = (diagonal_beside(key, n, values) for n in (self.block, rotated_size(values.size, self.block)))
        return whole, last, empty(room, values.dtype, values)

    def _lattice(self, values: np.ndarray, encodes: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, float]:
        """The tables, room for codes, and the sizes of the lattice and of its steps."""
        if on_device(values):
            words = empty(2 * self._blocks(values.size), np.dtype(np.uint32), values)
            octets = empty(self._code_count(values.size) if encodes else 0, np.dtype(np.uint8), values)
            return _lookup(self.table, device_of(values)), words, octets, self.granularity, self._reach()
        words, octets = np.empty((2, PACKED), np.int32), np.empty((4, PACKED), np.uint8)
        return _tables(self.table), words, octets, self.granularity, self._reach()

    def _reach(self) -> float:
        """What a step of the lattice is worth, in standard deviations."""
        return 2 * clamp_limit(self.p) / self.granularity
