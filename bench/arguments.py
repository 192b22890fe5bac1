"""What users write on the command line: lists of sizes and of codecs, names of files."""

from __future__ import annotations

import re
from pathlib import Path

from collcomp.codecs import Codec, as_codec
from collcomp.codecs.registry import CODECS
from collcomp.run import parse_nbytes

__all__ = ["NO_CODEC", "check_file", "codec_name", "parse_codecs", "parse_sizes", "split_specs"]

NO_CODEC = "none"
"""What native MPI is called in a list of codecs."""


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
        starts = codec_name(part) in (NO_CODEC, *CODECS)
        if specs and ":" in specs[-1] and not starts:
            specs[-1] += "," + part.strip()
        else:
            specs.append(part.strip())
    return specs


def parse_codecs(text: str) -> list[Codec | None]:
    """Codecs from their specs between commas; None stands for ``"none"``.

    Examples
    --------
    >>> parse_codecs("none,int4:block=128,rounding=stochastic,int8")
    [None, Int4(block=128, rounding='stochastic', seed=0, feedback=False), Int8(block=256, rounding='nearest', seed=0,\
 feedback=False)]
    """
    codecs: list[Codec | None] = []
    for spec in split_specs(text):
        try:
            codec = None if spec == NO_CODEC else as_codec(spec)
        except (TypeError, ValueError) as error:
            raise ValueError(f"--codec: {error}") from None
        if codec not in codecs:
            codecs.append(codec)
    return codecs


def check_file(path: str | None, option: str) -> None:
    """Find out now, not at the end of a long run, that a file cannot be written."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{option}: {path!r} is in no directory that exists")
