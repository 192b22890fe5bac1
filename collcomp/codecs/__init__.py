"""Values to frames and back: one file a family, one table of all."""

from collcomp.codecs.base import Codec
from collcomp.codecs.casts import BF16, FP16
from collcomp.codecs.identity import Identity
from collcomp.codecs.microscaled import FP8E4M3, FP8E5M2, MXFP4, MXFP8
from collcomp.codecs.quantised import Int4, Int8
from collcomp.codecs.registry import CODECS
from collcomp.codecs.sparse import TopK
from collcomp.codecs.spec import as_codec, from_config

__all__ = [
    "BF16",
    "CODECS",
    "FP8E4M3",
    "FP8E5M2",
    "FP16",
    "MXFP4",
    "MXFP8",
    "Codec",
    "Identity",
    "Int4",
    "Int8",
    "TopK",
    "as_codec",
    "from_config",
]
