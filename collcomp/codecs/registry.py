"""The table of all codecs, family by family. docs/architecture.md says what a new one needs."""

from collcomp.codecs.adapters import ZFP, Blosc2, Numcodecs
from collcomp.codecs.base import Codec
from collcomp.codecs.bounded import Bounded
from collcomp.codecs.casts import BF16, FP16
from collcomp.codecs.dithered import QSGD, TernGrad
from collcomp.codecs.exponents import Exponents
from collcomp.codecs.hbound import HBound
from collcomp.codecs.identity import Identity
from collcomp.codecs.lhc import LHC
from collcomp.codecs.loco import LoCo
from collcomp.codecs.microscaled import FP8E4M3, FP8E5M2, MXFP4, MXFP8
from collcomp.codecs.mpc import MPC
from collcomp.codecs.nonzeros import Nonzeros
from collcomp.codecs.packed import Packed
from collcomp.codecs.planes import Planes
from collcomp.codecs.powersgd import PowerSGD
from collcomp.codecs.quantised import Int2, Int4, Int8
from collcomp.codecs.random_sparse import RandomBlock, RandomK
from collcomp.codecs.rotated import Hadamard
from collcomp.codecs.rows import Rows
from collcomp.codecs.shared_scale import SharedInt
from collcomp.codecs.signs import Sign
from collcomp.codecs.sparse import TopK
from collcomp.codecs.thc import THC
from collcomp.codecs.threshold import Threshold

__all__ = ["CODECS"]

CODECS: dict[str, type[Codec]] = {
    "identity": Identity,
    "fp16": FP16,
    "bf16": BF16,
    "fp8_e4m3": FP8E4M3,
    "fp8_e5m2": FP8E5M2,
    "mxfp8": MXFP8,
    "mxfp4": MXFP4,
    "int8": Int8,
    "int4": Int4,
    "int2": Int2,
    "sign": Sign,
    "loco": LoCo,
    "qsgd": QSGD,
    "terngrad": TernGrad,
    "hadamard": Hadamard,
    "topk": TopK,
    "threshold": Threshold,
    "randomk": RandomK,
    "randomblock": RandomBlock,
    "powersgd": PowerSGD,
    "shared_int": SharedInt,
    "thc": THC,
    "lhc": LHC,
    "bounded": Bounded,
    "hbound": HBound,
    "rows": Rows,
    "exponents": Exponents,
    "mpc": MPC,
    "packed": Packed,
    "nonzeros": Nonzeros,
    "planes": Planes,
    "zfp": ZFP,
    "blosc2": Blosc2,
    "numcodecs": Numcodecs,
}
