"""The codecs that tests run with."""

import re

import numpy as np

from collcomp.codecs import CODECS, as_codec
from collcomp.codecs.libraries import has_library

_F32 = np.dtype(np.float32)

#: One spec or more of each codec, with and without what changes its path.
ALL_SPECS = (
    "identity",
    "fp16",
    "fp16:rounding=stochastic",
    "bf16",
    "bf16:rounding=stochastic",
    "fp8_e4m3",
    "fp8_e4m3:block=32,rounding=stochastic",
    "fp8_e5m2",
    "fp8_e5m2:block=512,rounding=stochastic",
    "mxfp8",
    "mxfp8:rounding=stochastic",
    "mxfp4",
    "mxfp4:rounding=stochastic",
    "int8",
    "int8:block=64,rounding=stochastic",
    "int4",
    "int4:block=32,rounding=stochastic",
    "int4:asymmetric",
    "int2",
    "int2:block=64,rounding=stochastic",
    "int8:asymmetric,rounding=stochastic",
    "int2:asymmetric",
    "sign",
    "sign:block=64",
    "loco",
    "topk",
    "topk:k=7",
    "shared_int",
    "shared_int:bits=16",
    "packed",
    "powersgd",
    "powersgd:rank=3,columns=30,min_rate=1",
    "lhc",
    "qsgd",
    "qsgd:levels=3,norm=l2,spacing=natural",
    "terngrad",
    "terngrad:clip=2.5,block=256",
    "hadamard+int4",
    "thc",
    "thc:bits=3,granularity=20,p=0.01,block=256",
    "hadamard:block=512,seed=3+int8:rounding=stochastic",
    "mpc",
    "mpc:dim=3",
    "planes",
    "exponents",
    "zfp",
    "zfp:rate=8",
    "blosc2",
    "blosc2:compressor=lz4,filter=bitshuffle",
    "numcodecs",
    "numcodecs:lz4",
    "numcodecs:zlib,level=3",
    "topk:ratio=0.02",
    "topk:ratio=0.3",
    "threshold:ratio=0.05",
    "threshold:ratio=0.05,method=dgc",
    "threshold:ratio=0.05,method=held,every=3",
    "randomk:ratio=0.05",
    "randomk:ratio=0.7,scaled",
    "randomblock:ratio=0.05",
    "randomblock:k=7,scaled",
    "nonzeros",
    "bounded",
    "bounded:abs=0.01",
    "hbound",
    "rows",
    "rows:dim=10,abs=0.1",
)
#: Those whose libraries are installed.
SPECS = tuple(spec for spec in ALL_SPECS if has_library(CODECS[re.match(r"\w+", spec)[0]].library))
LOSSY = tuple(spec for spec in SPECS if not as_codec(spec).lossless)
#: Those whose residual holds exactly what was not sent: one of another dtype is itself rounded.
EXACT_FEEDBACK = tuple(
    spec for spec in LOSSY if as_codec(spec).residual_dtype(np.dtype(np.float32)) == np.dtype(np.float32)
)
