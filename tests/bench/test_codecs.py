"""`collcomp bench codecs`."""

import json

import numpy as np
import pytest

from collcomp.bench import codecs


def test_rows_table_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--sizes", "64K,128K", "--codec", "int8:block=64,rounding=stochastic,bf16", "--repeats", "1"]
    assert codecs.main([*arguments, "--json", str(tmp_path / "o.json"), "--plot", str(tmp_path / "o.png")]) == 0
    rows = json.loads((tmp_path / "o.json").read_text())
    assert [row["codec"] for row in rows] == ["int8:block=64,rounding=stochastic", "bf16"] * 2
    assert [row["nbytes"] for row in rows] == [65536] * 2 + [131072] * 2
    wanted = "codec data nbytes encode_gbps decode_gbps decode_add_gbps memcpy_gbps ratio max_err rms_err"
    wanted += " entropy exponent_entropy"
    assert all(set(wanted.split()) <= set(row) for row in rows)
    assert [row["hop_gbps"] is None for row in rows] == [False, True] * 2
    assert (tmp_path / "o.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    table = printed.splitlines()
    assert "bf16" in table[2]
    assert table[2].split()[-2:] == ["-", "-"]
    assert "bits a value" in printed


@pytest.mark.parametrize("name", ["normal", "grad", "smooth"])
def test_data(name):
    x = codecs.make_data(name, 1000)
    assert x.dtype == np.float32
    assert x.shape == (1000,)
    np.testing.assert_array_equal(x, codecs.make_data(name, 1000))


def test_data_from_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(codecs.make_data(str(tmp_path / "x.npy"), 8), [0, 1, 2, 3, 4, 5, 0, 1])


@pytest.mark.parametrize(
    "arguments", [["--codec", "int9"], ["--data", "noise"], ["--sizes", "x"], ["--sizes", "2"], ["--repeats", "0"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        codecs.main(arguments)
    assert stop.value.code == 2
    assert arguments[0].strip("-") in capsys.readouterr().err
