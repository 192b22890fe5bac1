"""Packets without elements, whoever made them."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.kernels.cpu.packets import HEADER_NBYTES, JOIN, KINDS, MAGIC
from collcomp.switch.control import LONGEST_NBYTES, Control, brief

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
)


def raw(data):
    return np.frombuffer(data, np.uint8)


def header(kind=JOIN, magic=MAGIC):
    return struct.pack("<IBBH", magic, kind, 0, 0) + bytes(HEADER_NBYTES - 8)


@given(
    st.integers(0, KINDS - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.text(max_size=150),
)  # fmt: skip
def test_what_is_packed_is_unpacked(kind, job, worker, epoch, chunk, slot, text):
    control = Control(kind, job, worker, epoch, chunk, slot, {"text": text})
    assert Control.unpack(control.pack()) == control


def test_an_empty_body():
    assert Control.unpack(Control(JOIN, 7).pack()) == Control(JOIN, 7, body={})


def test_a_body_that_is_too_long():
    with pytest.raises(ValueError, match=f"{LONGEST_NBYTES} at most"):
        Control(JOIN, 7, body={"text": "x" * LONGEST_NBYTES}).pack()


@given(st.text(max_size=2000) | st.text(st.characters(max_codepoint=160), min_size=900))
def test_brief_texts_fit(text):
    short = brief(text)
    assert text.startswith(short) or "?" in short
    assert Control.unpack(Control(JOIN, 7, body={"text": short}).pack()).body == {"text": short}


def test_brief_keeps_what_it_can():
    assert brief('rank 1 gave up: "ä\n"') == 'rank 1 gave up: "??"'


@given(st.binary(max_size=2 * LONGEST_NBYTES) | st.binary(max_size=LONGEST_NBYTES).map(lambda data: header() + data))
def test_any_bytes(data):
    control = Control.unpack(raw(data))
    assert control is None or isinstance(control.body, dict)


@given(JSON)
def test_any_json(value):
    control = Control.unpack(raw(header() + json.dumps(value).encode()))
    assert control is None
    control = Control.unpack(raw(header() + json.dumps({"ranks": value}).encode()))
    assert control is None or set(control.body) == {"ranks"}


@pytest.mark.parametrize(
    "data",
    [
        b"", bytes(HEADER_NBYTES), header(), header(kind=KINDS) + b"{}", header(magic=MAGIC + 1) + b"{}",
        header() + b"{", header() + b"[" * 1000, header() + b'{"a":' * 200 + b"}" * 200, header() + b"\xff\xfe{}",
        header() + b"1" * 1200, header() + b"{}" + b" " * 1200, header()[:-1],
    ],
)  # fmt: skip
def test_what_is_none(data):
    assert Control.unpack(raw(data)) is None
