"""Codecs from what users write: a string spec, a configuration, or the object itself."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from collcomp.codecs.base import Codec
from collcomp.codecs.registry import CODECS

__all__ = ["as_codec", "from_config"]


def as_codec(what: str | Codec) -> Codec:
    """The codec that `what` names.

    Parameters
    ----------
    what : str or Codec
        ``"int8"``, ``"int4:block=128,feedback"``, ``"topk:ratio=0.01"``, or a codec, which is returned as it is.

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
    name, _, rest = spec.partition(":")
    config: dict[str, Any] = {"codec": name.strip()}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = (p.strip() for p in part.partition("="))
        config[key] = _literal(value) if equals else True
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
