"""What users write on the command line: lists of sizes and of codecs, names of files."""

from __future__ import annotations

import re

from collcomp.codecs import Codec, as_codec
from collcomp.codecs.registry import CODECS
from collcomp.units import check_file, parse_nbytes

__all__ = [
    "NO_CODEC",
    "TORCH_HOOKS",
    "check_file",
    "codec_name",
    "parse_codecs",
    "parse_methods",
    "parse_sizes",
    "split_specs",
]

NO_CODEC = "none"
"""What native MPI is called in a list of codecs."""

TORCH_HOOKS = ("torch:fp16", "torch:powersgd", "torch:powersgd:rank=8")
"""What PyTorch's own communication hooks are called there, where a benchmark has them."""

_NAMES = (NO_CODEC, "torch", *CODECS)


def parse_sizes(text: str) -> list[int]:
    """Message sizes in bytes, ascending.

    Parameters
    ----------
    text : str
        ``"64K,1M"``, a range of powers of two ``"8:64M"``, or a range with a factor ``"64K:64M:4"``; a list may
        contain ranges.

    Raises
    ------
    ValueError
        Naming the part that is none of these, or that is no whole number of float32.

    Examples
    --------
    >>> parse_sizes("8:64,1K")
    [8, 16, 32, 64, 1024]
    """
    sizes: set[int] = set()
    for part in text.split(","):
        first, *rest = part.split(":")
        start = parse_nbytes(first, "--sizes")
        stop = parse_nbytes(rest[0], "--sizes") if rest else start
        factor = _factor(rest[1], part) if len(rest) > 1 else 2
        if len(rest) > 2 or start > stop:
            raise ValueError(f"--sizes: {part!r} is no range; write FIRST:LAST or FIRST:LAST:FACTOR")
        if start < 4 or start % 4:
            raise ValueError(f"--sizes: {first!r} is no whole number of float32 (4 bytes)")
        while start <= stop:
            sizes.add(start)
            start *= factor
    return sorted(sizes)


def _factor(text: str, part: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise ValueError(f"--sizes: {part!r} has the factor {text!r}, expected 2 or more")
    return int(text)


def codec_name(spec: str) -> str:
    """The name that a spec begins with."""
    return re.split("[:+]", spec)[0].strip()


def split_specs(text: str) -> list[str]:
    """Single specs of several between commas.

    Specs have commas too: after ``"name:"`` whatever names no codec is another parameter.
    """
    specs: list[str] = []
    for part in text.split(","):
        if specs and ":" in specs[-1] and codec_name(part) not in _NAMES:
            specs[-1] += "," + part.strip()
        else:
            specs.append(part.strip())
    return specs


def parse_codecs(text: str) -> list[Codec | None]:
    """Codecs from their specs between commas; None stands for ``"none"``.

    Examples
    --------
    >>> [codec and codec.spec for codec in parse_codecs("none,int4:block=128,rounding=stochastic,int8")]
    [None, 'int4:block=128,rounding=stochastic', 'int8']
    """
    return list(dict.fromkeys(_codec(spec) for spec in split_specs(text)))


def parse_methods(text: str) -> list[str]:
    """Specs of codecs as they call themselves, ``"none"`` and `TORCH_HOOKS`, between commas.

    Examples
    --------
    >>> parse_methods("none,torch:powersgd,topk:ratio=0.010,feedback")
    ['none', 'torch:powersgd', 'topk:ratio=0.01,feedback']
    """
    methods = []
    for spec in split_specs(text):
        if spec in TORCH_HOOKS:
            methods.append(spec)
        elif codec_name(spec) == "torch":
            raise ValueError(f"--codec: {spec!r} is no hook of PyTorch's that is measured: {', '.join(TORCH_HOOKS)}")
        else:
            codec = _codec(spec)
            methods.append(NO_CODEC if codec is None else codec.spec)
    return list(dict.fromkeys(methods))


def _codec(spec: str) -> Codec | None:
    try:
        return None if spec == NO_CODEC else as_codec(spec)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--codec: {error}") from None
