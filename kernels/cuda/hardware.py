"""`primitives` as the hardware has them."""

import numpy as np
from llvmlite import ir
from numba import cuda, types
from numba.cuda.extending import intrinsic

from collcomp.kernels.cuda.jit import inlined

__all__ = [
    "bit_length",
    "bits_of",
    "float_of",
    "lane_sums_before",
    "largest_of_lanes",
    "meet",
    "product",
    "product32",
    "rint",
    "smallest_of_lanes",
    "sum_by_halves",
    "sum_of_half_by_halves",
    "union_of_lanes",
    "value_of_lane",
    "votes",
]

_ALL = 0xFFFFFFFF
_TWINS = {types.float32: types.int32, types.float64: types.int64}
_REGISTERS = {types.float32: ("f32", "f"), types.float64: ("f64", "d")}
_TWIN_OF = {twin: kind for kind, twin in _TWINS.items()}


@intrinsic
def bit_length(typing_context, x):
    """How many bits `x` needs, an int32 or int64 that is not negative."""

    def generate(context, builder, signature, args):
        kind = args[0].type
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))
        length = builder.sub(ir.Constant(kind, kind.width), zeros)
        return builder.trunc(length, ir.IntType(32)) if kind.width > 32 else length

    return types.int32(x), generate


@intrinsic
def bits_of(typing_context, x):
    """The bits of float `x` as a signed integer of its size."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return _TWINS[x](x), generate


@intrinsic
def float_of(typing_context, bits):
    """The float that has these bits, a signed integer of its size."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return _TWIN_OF[bits](bits), generate


@intrinsic
def product(typing_context, a, b):
    """``a * b``, rounded before anything is added to it."""
    name, register = _REGISTERS[a]

    def generate(context, builder, signature, args):
        kind = args[0].type
        code = f"mul.rn.{name} $0, $1, $2;"
        multiply = ir.InlineAsm(ir.FunctionType(kind, [kind, kind]), code, f"={register},{register},{register}")
        return builder.call(multiply, args)

    return a(a, a), generate


@intrinsic
def rint(typing_context, x):
    """Float `x` rounded to an integer, ties to even."""
    name, register = _REGISTERS[x]

    def generate(context, builder, signature, args):
        kind = args[0].type
        code = f"cvt.rni.{name}.{name} $0, $1;"
        return builder.call(ir.InlineAsm(ir.FunctionType(kind, [kind]), code, f"={register},{register}"), args)

    return x(x), generate


@intrinsic
def product32(typing_context, a, b):
    """The low 32 bits of ``a * b``, of uint32: numba itself would multiply 64 bits, which takes three instructions."""
    return types.uint32(types.uint32, types.uint32), lambda context, builder, signature, args: builder.mul(*args)


@inlined
def largest_of_lanes(value):
    """The largest value of the warp's lanes, in every lane."""
    for distance in (16, 8, 4, 2, 1):
        value = max(value, cuda.shfl_xor_sync(_ALL, value, distance))
    return value


@inlined
def smallest_of_lanes(value):
    """The smallest value of the warp's lanes, in every lane."""
    for distance in (16, 8, 4, 2, 1):
        value = min(value, cuda.shfl_xor_sync(_ALL, value, distance))
    return value


@inlined
def sum_by_halves(value):
    """The sum over the lanes, in every lane: the upper half of them is added to the lower until one is left."""
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(_ALL, value, distance)
    return value


@inlined
def sum_of_half_by_halves(value):
    """As `sum_by_halves`, over half a warp: the first 16 lanes, or the others, whichever this one belongs to."""
    for distance in (8, 4, 2, 1):
        value += cuda.shfl_xor_sync(_ALL, value, distance)
    return value


@inlined
def union_of_lanes(bits):
    """The bits that are set in an integer of some lane, in every lane."""
    for distance in (16, 8, 4, 2, 1):
        bits |= cuda.shfl_xor_sync(_ALL, bits, distance)
    return bits


@inlined
def value_of_lane(value, lane):
    """What `value` is in `lane`."""
    return cuda.shfl_sync(_ALL, value, lane)


@inlined
def votes(condition):
    """In which lanes `condition` holds, as the bits of a uint32."""
    return np.uint32(cuda.ballot_sync(_ALL, condition))


@inlined
def lane_sums_before(value):
    """The sum of an integer over the lanes before this one, and over all lanes."""
    lane = cuda.laneid
    total = value
    for distance in (1, 2, 4, 8, 16):
        other = cuda.shfl_up_sync(_ALL, total, distance)
        if lane >= distance:
            total += other
    return total - value, cuda.shfl_sync(_ALL, total, 31)


@inlined
def meet():
    """Wait for the other lanes of the warp, and see what they wrote."""
    cuda.syncwarp()
