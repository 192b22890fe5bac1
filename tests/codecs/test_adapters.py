"""Codecs of other libraries."""

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal
from lossless import check_every_bit

from collcomp import info
from collcomp.codecs import ZFP, Blosc2, Numcodecs, as_codec, libraries
from collcomp.errors import FrameError


@pytest.fixture
def _nothing_installed(monkeypatch):
    libraries.has_library.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    yield
    libraries.has_library.cache_clear()


@pytest.mark.usefixtures("_nothing_installed")
@pytest.mark.parametrize("cls", [ZFP, Blosc2, Numcodecs])
def test_a_missing_library_is_told(cls):
    with pytest.raises(ImportError, match=rf"{cls.codec_id}.*{cls.library}.*pip install 'collcomp\[codecs\]'"):
        cls()


@pytest.mark.usefixtures("_nothing_installed")
def test_codecs_without_library_are_listed():
    lines = info.describe_codecs().splitlines()
    for name in ("zfp", "blosc2", "numcodecs", "planes"):
        (line,) = (line for line in lines if line.startswith(name))
        assert "pip install 'collcomp[codecs]'" in line


def test_a_library_that_cannot_be_imported_is_told(monkeypatch):
    def fail(name):
        raise ValueError("invalid literal")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ImportError, match=r"nonesuch.*invalid literal"):
        libraries.load_library("nonesuch")


class TestZFP:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("zfpy")

    @pytest.mark.parametrize("dtype", WORKING, ids=str)
    @pytest.mark.parametrize("rate", [4, 5, 8, 13, 16, 24, 32])
    @pytest.mark.parametrize("count", [4096, 4097, 4099])
    def test_error_bound(self, rate, count, dtype):
        rng = np.random.default_rng(count)
        for x in (
            rng.standard_normal(count),
            rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count),
            rng.choice([-1.0, 1.0], count) * (1 - 1e-3 * rng.random(count)),
            rng.choice([-1.0, 1.0], count) * 2.0 ** rng.integers(-6, 1, count),
            np.sin(np.arange(count) / 100),
        ):
            x = x.astype(dtype)
            frame = encode(ZFP(rate=rate), x)
            assert frame.payload.size == -(-(-(-count // 4) * 4 * rate) // 64) * 8
            error = np.abs(decode(ZFP(rate=rate), frame, dtype).astype(float) - x)
            largest = np.maximum.reduceat(np.abs(x.astype(float)), np.arange(0, count, 4)).repeat(4)[:count]
            assert (error <= largest * 2.0 ** (9 - rate)).all()

    def test_more_bits_are_better(self):
        x = np.sin(np.arange(4096) / 100).astype(np.float32)
        errors = [np.abs(decode(ZFP(rate=r), encode(ZFP(rate=r), x), x.dtype) - x).max() for r in (6, 10, 14, 18)]
        assert all(a > 4 * b for a, b in itertools.pairwise(errors))

    @pytest.mark.parametrize(("dtype", "floor"), [(np.float32, 2.0**-93), (np.float64, 2.0**-957)])
    def test_tiny_values_keep_an_absolute_bound(self, dtype, floor):
        exponents = np.arange(np.finfo(dtype).minexp - 20, int(np.log2(floor)) + 8)
        x = np.ldexp(normal(exponents.size * 8, np.float64).clip(-1, 1), exponents.repeat(8)).astype(dtype)
        error = np.abs(decode(ZFP(), encode(ZFP(), x), dtype).astype(float) - x)
        largest = np.maximum.reduceat(np.abs(x.astype(float)), np.arange(0, x.size, 4)).repeat(4)
        assert (error <= np.maximum(floor, largest * 2.0**-7)).all()

    @pytest.mark.parametrize("dtype", WORKING, ids=str)
    def test_odd_values_travel_as_they_are(self, dtype):
        for value in (np.nan, np.inf, -np.inf, np.finfo(dtype).max, -np.finfo(dtype).max):
            x = normal(100, dtype)
            x[50] = value
            frame = encode(ZFP(rate=4), x)
            assert frame.extra == 1
            assert decode(ZFP(rate=4), frame, dtype).tobytes() == x.tobytes()

    @pytest.mark.parametrize("rate", [3, 33, 0])
    def test_rate_is_checked(self, rate):
        with pytest.raises(ValueError, match=f"rate.*{rate}"):
            ZFP(rate=rate)


class TestBlosc2:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("blosc2")

    @pytest.mark.parametrize("compressor", ["zstd", "lz4", "lz4hc", "blosclz", "zlib"])
    @pytest.mark.parametrize("filter", ["shuffle", "bitshuffle", "none"])
    def test_every_bit(self, compressor, filter):
        check_every_bit(Blosc2(compressor=compressor, filter=filter), counts=(0, 1, 1000))

    def test_level(self):
        check_every_bit(Blosc2(level=9), counts=(3000,))
        x = make_smooth()
        assert encode(Blosc2(level=9), x).payload.size < encode(Blosc2(level=1), x).payload.size

    def test_shuffling_pays(self):
        x = make_smooth()
        assert encode(Blosc2(), x).payload.size < 0.8 * encode(Blosc2(filter="none"), x).payload.size

    @pytest.mark.parametrize(("at", "value"), [(3, 8), (4, 0), (12, 0), (16, 32), (16, 5), (20, 1)], ids=str)
    def test_other_headers_are_refused(self, at, value):
        """Blosc2 would load a filter or compressor that a header names."""
        x = make_smooth()
        payload = encode(Blosc2(), x).payload.copy()
        payload[at] = value
        with pytest.raises(FrameError, match="header"):
            Blosc2().decode(dataclasses.replace(encode(Blosc2(), x), payload=payload), x)

    @pytest.mark.parametrize("parameters", [{"compressor": "grok"}, {"filter": "delta"}, {"level": 10}, {"level": 0}])
    def test_parameters_are_checked(self, parameters):
        ((name, value),) = parameters.items()
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            Blosc2(**parameters)


class TestNumcodecs:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("numcodecs")

    @pytest.mark.parametrize("name", ["zstd", "lz4", "zlib", "bz2"])
    def test_every_bit(self, name):
        check_every_bit(Numcodecs(name), counts=(0, 1, 1000))

    @pytest.mark.parametrize("spec", ["numcodecs:lz4", "numcodecs:zlib,level=3", "numcodecs:level=3", "numcodecs"])
    def test_specs_name_the_compressor_first(self, spec):
        assert as_codec(spec).spec == spec
        assert as_codec("numcodecs:zstd,level=5") == Numcodecs(level=5)

    def test_level(self):
        x = make_smooth()
        assert encode(Numcodecs("zlib", level=9), x).payload.size < encode(Numcodecs("zlib", level=1), x).payload.size

    @pytest.mark.parametrize("name", ["zstd", "lz4", "zlib", "bz2"])
    def test_what_tells_of_another_size_is_refused(self, name):
        """A small frame of very many zeros is not decompressed."""
        codec = Numcodecs(name)
        x = np.zeros(1000, np.uint8)
        frame = encode(codec, x)
        for count in (999, 1001, 1 << 25):
            other = codec._compress(np.zeros(count, np.uint8), 1)
            payload = np.frombuffer(other[:999], np.uint8)
            tracemalloc.start()
            with pytest.raises(FrameError):
                codec.decode(dataclasses.replace(frame, payload=payload), x)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 1 << 17

    def test_sizes_in_zstd_headers(self):
        """One, two and four bytes of it."""
        codec = Numcodecs()
        for count in (20, 255, 256, 257, 65791, 65792, 70000):
            x = np.zeros(count, np.uint8)
            frame = encode(codec, x)
            assert frame.payload.size < count
            decode(codec, frame, x.dtype)

    @pytest.mark.parametrize("name", ["gzip", "lzma", "pickle", "zfpy", "nothing"])
    def test_only_lossless_compressors_of_bytes(self, name):
        with pytest.raises(ValueError, match=f"name.*{name}"):
            Numcodecs(name)

    @pytest.mark.parametrize(("name", "level"), [("zstd", 23), ("zlib", 10), ("bz2", 0), ("lz4", 0)])
    def test_level_is_checked(self, name, level):
        with pytest.raises(ValueError, match=f"level.*{level}"):
            Numcodecs(name, level=level)


def make_smooth():
    return np.sin(np.arange(20_000) / 1000).astype(np.float32)
