"""The table of all codecs. To add one: write its class in its family's file and its line here."""

from collcomp.codecs.base import Codec
from collcomp.codecs.casts import BF16, FP16
from collcomp.codecs.identity import Identity
from collcomp.codecs.microscaled import FP8E4M3, FP8E5M2, MXFP4, MXFP8
from collcomp.codecs.quantised import Int4, Int8
from collcomp.codecs.sparse import TopK

__all__ = ["CODECS"]

CODECS: dict[str, type[Codec]] = {
    "identity": Identity,
    "fp16": FP16,
    "bf16": BF16,
    "int8": Int8,
    "int4": Int4,
    "topk": TopK,
    "fp8_e4m3": FP8E4M3,
    "fp8_e5m2": FP8E5M2,
    "mxfp8": MXFP8,
    "mxfp4": MXFP4,
}
