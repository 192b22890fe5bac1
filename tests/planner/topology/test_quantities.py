"""Bandwidths, latencies and series of names as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.planner.topology.hardware import nvlink_bandwidth, pcie_bandwidth, processor_bandwidth
from collcomp.planner.topology.quantities import expand, parse_bandwidth, parse_latency


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("300 GB/s", 300e9),
        ("300GBps", 300e9),
        ("200 Gbit/s", 25e9),
        ("200gbit", 25e9),
        ("100 Gb/s", 12.5e9),
        ("100 Gbps", 12.5e9),
        ("1.5 MB/s", 1.5e6),
        ("8 bit/s", 1.0),
        ("1e9", 1e9),
        (7, 7.0),
        (2.5e9, 2.5e9),
    ],
)
def test_bandwidths(text, value):
    assert parse_bandwidth(text, "bandwidth") == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("2us", 2e-6), ("1.5 ms", 1.5e-3), ("3 µs", 3e-6), ("40 ns", 4e-8), (0, 0)]
)
def test_latencies(text, value):
    assert parse_latency(text, "latency") == pytest.approx(value)


@pytest.mark.parametrize(
    "value", ["", "GB/s", "3 GX/s", "-3 GB/s", "1..2 GB/s", "nan", "inf GB/s", None, True, [1], -1]
)
def test_what_is_no_bandwidth_is_named(value):
    with pytest.raises(ValueError, match="uplink: "):
        parse_bandwidth(value, "uplink")
    with pytest.raises(ValueError, match="latency: "):
        parse_latency(value, "latency")


@pytest.mark.parametrize(
    ("series", "names"),
    [
        ("a", ["a"]),
        ("h[0-1].g[0,2-3]", ["h0.g0", "h0.g2", "h0.g3", "h1.g0", "h1.g2", "h1.g3"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("[3]x", ["3x"]),
    ],
)
def test_series(series, names):
    assert expand(series, "name") == names


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=3))
def test_series_of_several_brackets_count_like_digits(ranges):
    series = "".join(f"x[{first}-{first + more}]" for first, more in ranges)
    names = [""]
    for first, more in ranges:
        names = [f"{name}x{i}" for name in names for i in range(first, first + more + 1)]
    assert expand(series, "name") == names


@pytest.mark.parametrize(
    "series", ["", "a[", "a]", "a[]", "a[1-]", "a[3-1]", "a[[1]]", "a[x]", "a[0-99999999]", "a[0-1999][0-1999]"]
)
def test_what_is_no_series_is_named(series):
    with pytest.raises(ValueError, match="nodes: "):
        expand(series, "nodes")


def test_links_inside_hosts_carry_what_nccl_takes_them_for():
    assert pcie_bandwidth("32.0 GT/s PCIe", 16) == 48e9
    assert pcie_bandwidth("16 GT/s", 8) == pcie_bandwidth("", 0) == pcie_bandwidth("Unknown", 16) == 12e9
    assert [nvlink_bandwidth(sm) for sm in (60, 70, 80, 86, 89, 90, 100)] == [
        18e9,
        20e9,
        20e9,
        12e9,
        20e9,
        20.6e9,
        40.1e9,
    ]
    assert processor_bandwidth("GenuineIntel", 6, 143) == 22e9
    assert processor_bandwidth("GenuineIntel", 6, 85) == 10e9
    assert processor_bandwidth("AuthenticAMD", 0x19) == 24e9
    assert processor_bandwidth("", arch="ppc64le") == 32e9
    assert processor_bandwidth("Other") == 6e9
