"""Values to frames and back: one file a family, one table of all."""

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
from collcomp.codecs.registry import CODECS
from collcomp.codecs.rotated import Hadamard
from collcomp.codecs.rows import Rows
from collcomp.codecs.shared_scale import SharedInt
from collcomp.codecs.signs import Sign
from collcomp.codecs.sparse import TopK
from collcomp.codecs.spec import as_codec, from_config
from collcomp.codecs.thc import THC
from collcomp.codecs.threshold import Threshold

__all__ = [
    "BF16",
    "CODECS",
    "FP8E4M3",
    "FP8E5M2",
    "FP16",
    "LHC",
    "MPC",
    "MXFP4",
    "MXFP8",
    "QSGD",
    "THC",
    "ZFP",
    "Blosc2",
    "Bounded",
    "Codec",
    "Exponents",
    "HBound",
    "Hadamard",
    "Identity",
    "Int2",
    "Int4",
    "Int8",
    "LoCo",
    "Nonzeros",
    "Numcodecs",
    "Packed",
    "Planes",
    "PowerSGD",
    "RandomBlock",
    "RandomK",
    "Rows",
    "SharedInt",
    "Sign",
    "TernGrad",
    "Threshold",
    "TopK",
    "as_codec",
    "from_config",
]
