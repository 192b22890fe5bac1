"""Values to frames and back: one file a family, one table of all."""

from collcomp.codecs.adapters import ZFP, Blosc2, Numcodecs
from collcomp.codecs.base import Codec
from collcomp.codecs.casts import BF16, FP16
from collcomp.codecs.exponents import Exponents
from collcomp.codecs.identity import Identity
from collcomp.codecs.mpc import MPC
from collcomp.codecs.planes import Planes
from collcomp.codecs.quantised import Int4, Int8
from collcomp.codecs.registry import CODECS
from collcomp.codecs.sparse import TopK
from collcomp.codecs.spec import as_codec, from_config

__all__ = [
    "BF16",
    "CODECS",
    "FP16",
    "MPC",
    "ZFP",
    "Blosc2",
    "Codec",
    "Exponents",
    "Identity",
    "Int4",
    "Int8",
    "Numcodecs",
    "Planes",
    "TopK",
    "as_codec",
    "from_config",
]
