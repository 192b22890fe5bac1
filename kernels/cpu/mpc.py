"""MPC: differences, a bit transpose, differences again, and only the words that are not zero.

Blocks of 1024 words of 32 bits, the last as long as what is left. Within a block: each word less the one `dim` before
it (the first `dim` stay); each group of 32 words transposed as a matrix of bits, so that word L of the group holds
bit L of them all; each word less the one before it. A bitmap of 32 bits a group tells which words are not zero, and
only these are kept. All arithmetic is modulo 2**32. Where the last group is not full, zeros stand in for differences.

Shapes, for n words, the last of which may lie in `tail` instead: `src`, `dst` (n,) or (n - 1,), `tail` (1,), `bitmaps`
(ceil(n / 32),), `words` (at least as many as are not zero), `block` and `planes` (1024,) scratch, `total` (1,); all
uint32.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from collcomp.kernels.cpu.bits import count_ones
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.vectors import element_pointer, load, same, splat, store

__all__ = ["BLOCK", "GROUP", "count_words", "decode", "encode"]

BLOCK = 1024
GROUP = 32

_I32 = ir.IntType(32)
_HALF = GROUP // 2
#: Words that are mostly all kept or all dropped: low bits of floats are noise, exponents often equal.
_PART = 8
_ALL = (1 << _PART) - 1


def _transposed(builder, low, high):
    """The 32 words of the two vectors, transposed as a matrix of bits.

    Five rounds exchange the blocks off the diagonal, of 16 x 16 bits down to one. In each round `low` holds the words
    whose number has bit `step` clear, `high` their partners.
    """
    numbers = list(range(GROUP))  # which word each lane of low, then high, holds
    step, mask = _HALF, 0x0000FFFF
    while True:
        shift = same(_I32, _HALF, step)
        swapped = builder.and_(builder.xor(builder.lshr(low, shift), high), same(_I32, _HALF, mask))
        high = builder.xor(high, swapped)
        low = builder.xor(low, builder.shl(swapped, shift))
        step //= 2
        if step == 0:
            break
        mask ^= mask << step & 0xFFFFFFFF
        low, high, numbers = _regrouped(
            builder, low, high, numbers, sorted(numbers, key=lambda word: (word & step != 0, word))
        )
    low, high, _ = _regrouped(builder, low, high, numbers, list(range(GROUP)))
    return low, high


def _regrouped(builder, low, high, numbers, wanted):
    lanes = [ir.Constant(_I32, numbers.index(word)) for word in wanted]
    kind = ir.VectorType(_I32, _HALF)
    halves = [builder.shuffle_vector(low, high, ir.Constant(kind, part)) for part in (lanes[:_HALF], lanes[_HALF:])]
    return *halves, wanted


@intrinsic
def _transpose(typing_context, src, first, dst, start):
    """Transpose the bits of ``src[first : first + 32]`` into ``dst[start : start + 32]``."""

    def generate(context, builder, signature, args):
        pointers = []
        for array, index in ((0, 1), (2, 3)):
            pointer = element_pointer(context, builder, signature.args[array], args[array], args[index])
            pointers.append((pointer, builder.gep(pointer, [_I32(_HALF)])))
        halves = [load(builder, pointer, _I32, _HALF) for pointer in pointers[0]]
        for half, pointer in zip(_transposed(builder, *halves), pointers[1], strict=True):
            store(builder, half, pointer)
        return context.get_dummy_value()

    return types.void(src, types.int64, dst, types.int64), generate


@intrinsic
def _nonzero(typing_context, src, first):
    """Which of ``src[first : first + 32]`` are not zero, as the bits of a uint32."""

    def generate(context, builder, signature, args):
        pointer = element_pointer(context, builder, signature.args[0], args[0], args[1])
        lanes = load(builder, pointer, _I32, GROUP)
        return builder.bitcast(builder.icmp_unsigned("!=", lanes, same(_I32, GROUP, 0)), _I32)

    return types.uint32(src, types.int64), generate


@inlined
def _subtract(x, dim, d):
    first = min(dim, x.size)
    for i in range(first):
        d[i] = x[i]
    # Slices, because an index that could be negative is not vectorised.
    later, differences = x[first:], d[first:]
    for i in range(later.size):
        differences[i] = later[i] - x[i]


@inlined
def _keep(group, bitmap, words, found):
    """Append those of the 32 words that `bitmap` tells of; return how many there are in all."""
    for part in range(0, GROUP, _PART):
        bits = (bitmap >> part) & _ALL
        x = group[part : part + _PART]
        if bits == _ALL:
            y = words[found : found + _PART]
            for i in range(_PART):
                y[i] = x[i]
            found += _PART
        elif bits:
            for i in range(_PART):
                words[found] = x[i]
                found += (bits >> i) & 1
    return found


@inlined
def _restore(group, bitmap, words, found):
    """Undo `_keep`."""
    for part in range(0, GROUP, _PART):
        bits = (bitmap >> part) & _ALL
        y = group[part : part + _PART]
        if bits == _ALL:
            x = words[found : found + _PART]
            for i in range(_PART):
                y[i] = x[i]
            found += _PART
        elif bits == 0:
            for i in range(_PART):
                y[i] = 0
        elif found + _PART <= words.size:
            for i in range(_PART):
                bit = (bits >> i) & 1
                y[i] = words[found] & np.uint32(-bit)
                found += bit
        else:
            for i in range(_PART):
                y[i] = 0
                if (bits >> i) & 1:
                    y[i] = words[found]
                    found += 1
    return found


@intrinsic
def _sums(typing_context, x, first, before):
    """Replace ``x[first : first + 16]`` by their running sums, from `before` on; return the last."""

    def generate(context, builder, signature, args):
        pointer = element_pointer(context, builder, signature.args[0], args[0], args[1])
        lanes = load(builder, pointer, _I32, _HALF)
        step = 1
        while step < _HALF:
            numbers = [_HALF + lane - step if lane >= step else 0 for lane in range(_HALF)]
            moved = builder.shuffle_vector(
                same(_I32, _HALF, 0), lanes, ir.Constant(ir.VectorType(_I32, _HALF), [_I32(k) for k in numbers])
            )
            lanes = builder.add(lanes, moved)
            step *= 2
        lanes = builder.add(lanes, splat(builder, args[2], _HALF))
        store(builder, lanes, pointer)
        return builder.extract_element(lanes, _I32(_HALF - 1))

    return types.uint32(x, types.int64, types.uint32), generate


@inlined
def _accumulate(x, size):
    """Running sums of ``x[:size]``, a multiple of 16."""
    total = np.uint32(0)
    for i in range(0, size, _HALF):
        total = _sums(x, i, total)


@kernel
def encode(src, tail, dim, bitmaps, words, block, planes, n):
    """Encode `n` words; return how many are kept in `words`."""
    found = 0
    for base in range(0, n, BLOCK):
        size = min(BLOCK, n - base)
        if base + size <= src.size:
            _subtract(src[base : base + size], dim, block)
        else:
            for i in range(size - 1):
                planes[i] = src[base + i]
            planes[size - 1] = tail[0]
            _subtract(planes[:size], dim, block)
        groups = (size + GROUP - 1) // GROUP
        for i in range(size, groups * GROUP):
            block[i] = 0
        for g in range(groups):
            _transpose(block, g * GROUP, planes, g * GROUP)
        _subtract(planes[: groups * GROUP], 1, block)
        for g in range(groups):
            bitmap = _nonzero(block, g * GROUP)
            bitmaps[base // GROUP + g] = bitmap
            found = _keep(block[g * GROUP : g * GROUP + GROUP], np.int64(bitmap), words, found)
    return found


@kernel
def count_words(bitmaps):
    """How many words `bitmaps` tell of."""
    found = 0
    for g in range(bitmaps.size):
        found += count_ones(np.uint64(bitmaps[g]))
    return found


@kernel
def decode(bitmaps, words, dim, dst, tail, block, planes, n):
    """Decode; `words` are as many as `count_words` found."""
    found = 0
    for base in range(0, n, BLOCK):
        size = min(BLOCK, n - base)
        groups = (size + GROUP - 1) // GROUP
        for g in range(groups):
            found = _restore(planes[g * GROUP : g * GROUP + GROUP], np.int64(bitmaps[base // GROUP + g]), words, found)
        _accumulate(planes, groups * GROUP)
        for g in range(groups):
            _transpose(planes, g * GROUP, block, g * GROUP)
        if dim == 1:
            _accumulate(block, groups * GROUP)
        else:
            later = block[dim:size]
            for i in range(later.size):
                later[i] += block[i]
        written = min(size, dst.size - base)
        y = dst[base : base + written]
        for i in range(written):
            y[i] = block[i]
        if written < size:
            tail[0] = block[written]
