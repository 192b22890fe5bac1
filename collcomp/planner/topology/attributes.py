"""Attributes of XML that cannot be missing."""

from __future__ import annotations

from xml.etree.ElementTree import Element

__all__ = ["text_of"]


def text_of(element: Element, attribute: str) -> str:
    """The value of an attribute; `ValueError` names the element and the attribute if there is none."""
    value = element.get(attribute)
    if not value:
        raise ValueError(f"<{element.tag}>: it has no {attribute}")
    return value
