"""Elements to planes of bytes and back.

`bits` (n,) are the elements' own, unsigned; `planes` (itemsize, n) uint8 hold their bytes, highest first. Those of
floats are rotated by one bit first (`turn` = 1, else 0), so that the sign follows the mantissa and the first plane of
float32 and bfloat16 is the exponent.
"""

from collcomp.kernels.cpu.jit import kernel

__all__ = ["join", "split"]

#: Elements that stay in the first cache while their planes are written.
_TILE = 1024


@kernel
def split(bits, turn, planes):
    """Write the planes of `bits`."""
    width = 8 * bits.itemsize
    for begin in range(0, bits.size, _TILE):
        end = min(begin + _TILE, bits.size)
        x = bits[begin:end]
        for p in range(bits.itemsize):
            plane = planes[p, begin:end]
            shift = width - 8 * (p + 1)
            if shift == 0 and turn:
                for i in range(x.size):
                    plane[i] = (x[i] << 1) | (x[i] >> (width - 1))
            else:
                for i in range(x.size):
                    plane[i] = x[i] >> (shift - turn)


@kernel
def join(planes, turn, bits):
    """Undo `split`."""
    width = 8 * bits.itemsize
    for begin in range(0, bits.size, _TILE):
        end = min(begin + _TILE, bits.size)
        x = bits[begin:end]
        for i in range(x.size):
            x[i] = 0
        for p in range(bits.itemsize):
            plane = planes[p, begin:end]
            shift = width - 8 * (p + 1)
            for i in range(x.size):
                x[i] |= bits.dtype.type(plane[i]) << shift
        if turn:
            for i in range(x.size):
                x[i] = (x[i] >> 1) | (x[i] << (width - 1))
