"""The table of all codecs. To add one: write its class in its family's file and its line here."""

from collcomp.codecs.base import Codec
from collcomp.codecs.bounded import Bounded
from collcomp.codecs.casts import BF16, FP16
from collcomp.codecs.hbound import HBound
from collcomp.codecs.identity import Identity
from collcomp.codecs.quantised import Int4, Int8
from collcomp.codecs.rows import Rows
from collcomp.codecs.sparse import TopK

__all__ = ["CODECS"]

CODECS: dict[str, type[Codec]] = {
    "identity": Identity,
    "fp16": FP16,
    "bf16": BF16,
    "int8": Int8,
    "int4": Int4,
    "topk": TopK,
    "bounded": Bounded,
    "hbound": HBound,
    "rows": Rows,
}
