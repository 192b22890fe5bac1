"""The benchmark of kernels on a GPU: what it counts and compares; without a GPU its times mean nothing."""

import numpy as np
import pytest
from device import to_device

from collcomp import devices
from collcomp.bench import codecs, gpu
from collcomp.codecs import as_codec

X = np.linspace(-1, 1, 256).astype(np.float32)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The simulator is slow."""
    monkeypatch.setattr(gpu, "_REPLAYS", 1)
    monkeypatch.setattr(gpu, "_TIMES", 1)
    to_device(X)


def test_rows():
    copy, *rows = gpu.measure([as_codec("int8"), as_codec("identity")], X)
    assert copy.moved == 2 * X.nbytes
    by_name = {row.operation: row for row in rows if row.codec == "int8"}
    assert by_name.keys() == {"encode", "decode", "decode_add", "encode_keep", "encode_feedback", "hop"}
    payload = 64 + 256  # a scale in a section of its own, and the codes
    assert by_name["encode"].moved == X.nbytes + payload
    assert by_name["decode_add"].moved == 2 * X.nbytes + payload
    assert by_name["encode"].same_frame
    assert by_name["decode_add"].unfused > 0
    assert {row.operation for row in rows if row.codec == "identity"} == {
        "encode", "decode", "decode_add", "encode_keep"
    }  # fmt: skip


def test_command(capsys, tmp_path):
    arguments = ["--device", "cuda", "--codec", "int4", "--sizes", "1K", "--json", str(tmp_path / "rows.json")]
    assert codecs.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "# stand-in" in printed
    assert "same" in printed
    assert (tmp_path / "rows.json").exists()


def test_a_codec_without_kernels_is_refused(capsys):
    assert codecs.main(["--device", "cuda", "--codec", "loco", "--sizes", "1K"]) == 2
    assert "'loco' has kernels for the CPU only" in capsys.readouterr().err


def test_without_a_gpu_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(devices, "missing", lambda: f"device: 'cuda' needs CuPy: {devices.INSTALL}")
    with pytest.raises(SystemExit):
        codecs.main(["--device", "cuda"])
    assert "pip install 'collcomp[cuda13]'" in capsys.readouterr().err
