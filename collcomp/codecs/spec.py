"""Codecs from what users write: a string spec, a configuration, or the object itself."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

from collcomp.codecs.base import Codec
from collcomp.codecs.registry import CODECS

__all__ = ["as_codec", "from_config"]

#: Between two codecs; not the sign of an exponent.
_PLUS = re.compile(r"\+(?=\s*[a-z])")


def as_codec(what: str | Codec) -> Codec:
    """The codec that `what` names.

    Parameters
    ----------
    what : str or Codec
        ``"int8"``, ``"int4:block=128,feedback"``, ``"topk:ratio=0.01"``, ``"numcodecs:zstd,level=3"``,
        ``"hadamard+int4"`` (what stands before ``+`` transforms the values for the codec after it), or a codec, which
        is returned as it is.

    Raises
    ------
    ValueError, TypeError
        Naming the codec or parameter that is not known, or the value that it cannot take.
    """
    if isinstance(what, Codec):
        return what
    if not isinstance(what, str):
        raise TypeError(f"codec: expected a spec string or a Codec, got {type(what).__name__}")
    return _parse(what)


@functools.lru_cache
def _parse(spec: str) -> Codec:
    outer, *inner = _PLUS.split(spec, maxsplit=1)
    name, _, rest = outer.partition(":")
    config: dict[str, Any] = {"codec": name.strip()}
    cls = CODECS.get(config["codec"])
    for number, part in enumerate(filter(None, (p.strip() for p in rest.split(",")))):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not (equals or number) and cls is not None and cls.positional:
            config[cls.positional] = _literal(key)
        else:
            config[key] = _literal(value) if equals else True
    if inner:
        config["inner"] = _parse(inner[0]).get_config()
    return from_config(config)


def from_config(config: dict[str, Any]) -> Codec:
    """The codec that `Codec.get_config` described."""
    parameters = dict(config)
    name = parameters.pop("codec", None)
    cls = CODECS.get(name)
    if cls is None:
        raise ValueError(f"codec: unknown codec {name!r}; known: {', '.join(CODECS)}")
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in parameters:
        if key not in known:
            raise ValueError(f"codec: {name!r} has no parameter {key!r}; it has: {', '.join(known) or 'none'}")
    if isinstance(parameters.get("inner"), dict):
        parameters["inner"] = from_config(parameters["inner"])
    return cls(**parameters)


def _literal(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
