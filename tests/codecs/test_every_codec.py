"""What every codec promises, whatever its family."""

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
from checks import (
    COUNTS,
    DTYPES,
    WORKING,
    check_configuration,
    check_decode_add,
    check_deterministic,
    check_encode_keep,
    check_feedback,
    decode,
    encode,
    frozen_name,
    normal,
)
from codec_specs import ALL_SPECS, EXACT_FEEDBACK, LOSSY, SPECS

from collcomp.codecs import CODECS, as_codec
from collcomp.codecs.libraries import has_library
from collcomp.errors import FrameError
from collcomp.frame import Frame

each_codec = pytest.mark.parametrize("spec", SPECS)
each_lossy = pytest.mark.parametrize("spec", LOSSY)


def test_specs_cover_the_registry():
    installed = {name for name, cls in CODECS.items() if has_library(cls.library)}
    assert {as_codec(spec).codec_id for spec in SPECS} == installed
    assert {re.match(r"\w+", spec)[0] for spec in ALL_SPECS} == set(CODECS)


def test_numbers_and_names_are_unique():
    assert len({cls.number for cls in CODECS.values()}) == len(CODECS)
    assert all(cls.codec_id == name for name, cls in CODECS.items())


@each_codec
def test_configuration(spec):
    check_configuration(as_codec(spec))


@each_codec
def test_is_immutable(spec):
    with pytest.raises(dataclasses.FrozenInstanceError):
        as_codec(spec).block = 1


@each_codec
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_any_count_and_dtype(spec, count, dtype):
    codec = as_codec(spec)
    x = normal(count, dtype)
    frame = encode(codec, x)
    assert frame.count == count
    decoded = decode(codec, frame, dtype)
    if codec.lossless:
        np.testing.assert_array_equal(decoded, x)
    check_deterministic(codec, x)
    check_decode_add(codec, x)
    check_encode_keep(codec, x)


@pytest.mark.parametrize("spec", EXACT_FEEDBACK)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 257, 1000])
def test_feedback_loses_nothing(spec, count, dtype):
    check_feedback(as_codec(spec), normal(count, dtype))


@each_lossy
@pytest.mark.parametrize("dtype", WORKING, ids=str)
def test_zero_stays_zero(spec, dtype):
    x = np.zeros(300, dtype)
    codec = as_codec(spec)
    np.testing.assert_array_equal(decode(codec, encode(codec, x), dtype), x)


@each_lossy
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_, np.int64])
def test_other_numbers_are_refused(spec, dtype):
    codec = as_codec(spec)
    with pytest.raises(TypeError, match=np.dtype(dtype).name):
        codec.encode(np.ones(4, dtype), np.empty(4096, np.uint8))


@each_codec
def test_frames_of_others_are_refused(spec):
    codec = as_codec(spec)
    frame = encode(codec, normal(100))
    out = np.zeros(100, np.float32)
    for wrong in (
        dataclasses.replace(frame, codec=99),
        dataclasses.replace(frame, config=frame.config ^ 1),
        dataclasses.replace(frame, count=101),
        dataclasses.replace(frame, dtype=np.dtype(np.float64)),
    ):
        for write in (codec.decode, codec.decode_add):
            with pytest.raises(FrameError):
                write(wrong, out)
    assert not out.any()


@each_codec
def test_read_only_and_unaligned_memory(spec):
    codec = as_codec(spec)
    x = normal(100)
    x.flags.writeable = False
    frame = encode(codec, x)
    expected = decode(codec, frame, np.float32)
    memory = np.empty(frame.nbytes + 1, np.uint8)
    memory[1:] = np.concatenate([np.zeros(64, np.uint8), frame.payload])
    elsewhere = dataclasses.replace(frame, payload=memory[65:])
    np.testing.assert_array_equal(decode(codec, elsewhere, np.float32), expected)
    frozen = dataclasses.replace(frame, payload=np.frombuffer(frame.payload.tobytes(), np.uint8))
    np.testing.assert_array_equal(decode(codec, frozen, np.float32), expected)


@pytest.mark.parametrize("spec", ["fp16", "bf16"])
def test_monotone_codecs_keep_the_order(spec):
    codec = as_codec(spec)
    assert codec.monotone
    x = np.sort(normal(4000))
    assert (np.diff(decode(codec, encode(codec, x), np.float32)) >= 0).all()


def test_importing_does_not_import_numba():
    code = "import sys, collcomp.codecs; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@each_codec
@pytest.mark.parametrize("dtype", WORKING, ids=str)
def test_frozen_frames(spec, dtype, fixtures):
    """Frames that were written once decode to the very bits, on any machine and by any later version."""
    stored = np.fromfile(fixtures / frozen_name(spec, dtype), np.uint8)
    codec = as_codec(spec)
    frame_nbytes = int(stored[:8].view(np.int64)[0])
    frame = Frame.read(stored[8 : 8 + frame_nbytes].copy())
    expected = stored[8 + frame_nbytes :]
    assert decode(codec, frame, dtype).tobytes() == expected.tobytes()


@pytest.mark.parametrize("spec", ["topk:ratio=1", "loco:beta=0", "threshold:ratio=1", "powersgd:min_rate=1"])
def test_equal_codecs_have_equal_digests(spec):
    assert as_codec(spec) == as_codec(f"{spec}.0")
    assert as_codec(spec).digest == as_codec(f"{spec}.0").digest
