"""Values to frames and back: one file a family, one table of all."""

from collcomp.codecs.base import Codec
from collcomp.codecs.casts import BF16, FP16
from collcomp.codecs.identity import Identity
from collcomp.codecs.nonzeros import Nonzeros
from collcomp.codecs.quantised import Int4, Int8
from collcomp.codecs.random_sparse import RandomBlock, RandomK
from collcomp.codecs.registry import CODECS
from collcomp.codecs.sparse import TopK
from collcomp.codecs.spec import as_codec, from_config
from collcomp.codecs.threshold import Threshold

__all__ = [
    "BF16",
    "CODECS",
    "FP16",
    "Codec",
    "Identity",
    "Int4",
    "Int8",
    "Nonzeros",
    "RandomBlock",
    "RandomK",
    "Threshold",
    "TopK",
    "as_codec",
    "from_config",
]
