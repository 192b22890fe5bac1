"""Values to frames and back: one file a family, one table of all."""

from collcomp.codecs.base import Codec
from collcomp.codecs.bounded import Bounded
from collcomp.codecs.casts import BF16, FP16
from collcomp.codecs.hbound import HBound
from collcomp.codecs.identity import Identity
from collcomp.codecs.quantised import Int4, Int8
from collcomp.codecs.registry import CODECS
from collcomp.codecs.rows import Rows
from collcomp.codecs.sparse import TopK
from collcomp.codecs.spec import as_codec, from_config

__all__ = [
    "BF16",
    "CODECS",
    "FP16",
    "Bounded",
    "Codec",
    "HBound",
    "Identity",
    "Int4",
    "Int8",
    "Rows",
    "TopK",
    "as_codec",
    "from_config",
]
