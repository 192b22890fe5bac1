"""Topology files that people write, and those that are no such thing."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from collcomp.planner.topology import Topology
from collcomp.planner.topology.families import dgx_a100, leaf_spine, mi250, star, torus, two_tier
from collcomp.planner.topology.files import parse_topology, read_topology

SHIPPED = Path(__file__).parents[3] / "mpi_configs" / "topologies"
SAMPLES = Path(__file__).parent / "samples"


def same(one: Topology, other: Topology) -> bool:
    return (one.nodes, one.links) == (other.nodes, other.links)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_can_be_read(path):
    topology = read_topology(path)
    assert topology.name == path.stem
    assert len(topology.devices) > 1


def test_shipped_files_are_what_they_say():
    for file, made in {
        "dgx-a100-x4": dgx_a100(4),
        "mi250-x2": mi250(2),
        "torus": torus([4, 4, 4], 50e9, latency=1e-6),
        "testbed-star": star(4, 125e6, latency=3e-5),
        "testbed-two-tier": two_tier(
            8, 2, host_bandwidth=25e6, uplink_bandwidth=[12.5e6, 12.5e6], spines=2, latency=3e-5
        ),
        "leaf-spine-dual-plane": leaf_spine(
            8,
            2,
            8,
            nics_per_host=8,
            ports_per_nic=2,
            planes=2,
            port_bandwidth=25e9,
            uplink_bandwidth=100e9,
            device_bandwidth=45.25e9,
        ),
    }.items():
        read = read_topology(SHIPPED / f"{file}.yaml")
        assert read.nodes == made.nodes, file
        assert read.links.keys() == made.links.keys(), file
        for ends, link in made.links.items():
            assert read.links[ends].bandwidth == pytest.approx(link.bandwidth), (file, ends)
            assert read.links[ends].latency == pytest.approx(link.latency), (file, ends)


def test_nodes_and_links():
    text = """
    nodes:
      - {name: "host[0-1].gpu[0-1]", kind: device, host: "host[0-1]", plane: 3}
      - {name: "host[0-1].nic", kind: port, host: "host[0-1]"}
      - {name: top, kind: switch}
    links:
      - {ends: ["host0.gpu[0-1]", host0.nic], bandwidth: 8 Gbit/s, latency: 2us}
      - {ends: ["host1.gpu[0-1]", host1.nic], bandwidth: 1e9}
      - {ends: ["host[0-1].nic", top], bandwidth: 3, one_way: true}
      - {ends: ["host0.gpu[0-1]", "host1.gpu[0-1]"], bandwidth: 5 B/s, pairwise: true}
    """
    topology = parse_topology(text, "written")
    assert topology.name == "written"
    assert topology.hosts == {"host0": ("host0.gpu0", "host0.gpu1"), "host1": ("host1.gpu0", "host1.gpu1")}
    assert topology.nodes["host1.gpu0"].plane == 3
    assert topology.links["host0.nic", "host0.gpu1"].latency == pytest.approx(2e-6)
    assert ("top", "host0.nic") not in topology.links
    assert {ends for ends, link in topology.links.items() if link.bandwidth == 5} == {
        (f"host{h}.gpu{g}", f"host{1 - h}.gpu{g}") for h in range(2) for g in range(2)
    }
    assert len(topology.links) == 4 + 4 + 2 + 4


@given(st.integers(1, 5), st.integers(1, 9))
def test_families_have_their_names_and_parameters(hosts, gigabits):
    text = yaml.safe_dump({"family": "star", "name": "mine", "hosts": hosts, "bandwidth": f"{gigabits} Gbit/s"})
    topology = parse_topology(text, "t")
    assert topology.name == "mine"
    assert same(topology, star(hosts, gigabits * 1e9 / 8))


def test_copies_of_a_host_that_a_tool_described(tmp_path):
    (tmp_path / "host.xml").write_bytes((SAMPLES / "nccl-hgx-h100.xml").read_bytes())
    (tmp_path / "all.yaml").write_text("family: copies\nhost: host.xml\nhosts: 3\nlatency: 1us\n")
    topology = read_topology(tmp_path / "all.yaml")
    assert topology.devices == tuple(f"host{h}.gpu{g}" for h in range(3) for g in (1, 0))
    assert topology.links["host2.mlx5_0", "switch"].bandwidth == 50e9
    (tmp_path / "host.xml").write_text("family: copies\nhost: host.xml\nhosts: 3\n")
    with pytest.raises(ValueError, match=r"all\.yaml: .*host\.xml: it is not what a tool wrote"):
        read_topology(tmp_path / "all.yaml")
    dgx_a100(2).save(tmp_path / "host.xml")
    with pytest.raises(ValueError, match="has 2 hosts, not one"):
        read_topology(tmp_path / "all.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither a family nor"),
        ("just words", "neither a family nor"),
        ("[1, 2]", "neither a family nor"),
        ("a: b: c", "no YAML"),
        ("{", "no JSON"),
        ('{"name": "t"}', "to_dict"),
        ('{"name": "t", "nodes": [], "links": [{"source": 1}]}', "to_dict"),
        ("<html></html>", "<html>"),
        ('<system version="1"/>', "no <gpu>"),
        ("a: !!python/object/apply:os.getcwd []", "no YAML"),
        ("a: &x [1]\nnodes: *x", r"aliases such as \*x"),
        ("family: ring", "family: 'ring'"),
        ("family: [star]", r"family: \['star'\]"),
        ("family: star\nhosts: 3", "bandwidth: star cannot do without it"),
        ("family: star\nhosts: 3\nbandwidth: fast", "bandwidth: 'fast'"),
        ("family: star\nhosts: 3\nbandwidth: 1 GB/s\nspeed: 3", "speed: star has no such parameter"),
        ("family: star\nhosts: many\nbandwidth: 1 GB/s", "hosts: 'many'"),
        ("family: torus\ndims: 4\nbandwidth: 1 GB/s", "torus: "),
        ("family: copies\nhost: 3\nhosts: 2", "host: 3"),
        (f"family: star\nhosts: 2\nbandwidth: {'9' * 400}", "bandwidth: 9+ is no bandwidth"),
        ('{"name": "t", "nodes": [{"name": 1, "kind": "device"}], "links": []}', "nodes: name"),
        (
            '{"name": "t", "nodes": [{"name": "a", "kind": "device"}, {"name": "b", "kind": "device"}], "links": '
            f'[{{"source": "a", "dest": "b", "bandwidth": {"9" * 400}}}]}}',
            "bandwidth of a -> b is too large",
        ),
        (
            "<system><cpu>"
            + "".join(f'<pci busid="{i}">' for i in range(20_000))
            + "</pci>" * 20_000
            + "</cpu></system>",
            "too deep",
        ),
        (
            "<topology>"
            + '<object type="Package" gp_index="1"/>'
            + "<object>" * 20_000
            + "</object>" * 20_000
            + "</topology>",
            "too deep",
        ),
        (
            "nodes: [{name: a, kind: device}]\nlinks: [{ends: [a, a], bandwidth: 1, one_way: 'false'}]",
            "one_way 'false'",
        ),
        ("nodes: [{name: a, kind: device}]\nlinks: [{ends: [a, a], bandwidth: 1, pairwise: 1}]", "pairwise 1"),
        ("nodes: 3\nlinks: []", "nodes: it is no list"),
        ("nodes: []", "links: it is no list"),
        ("nodes: []\nlinks: []\nedges: []", "'edges' is none of"),
        ("nodes: [{name: a, kind: device, colour: red}]\nlinks: []", "'colour'"),
        ("nodes: [{name: a}]\nlinks: []", "kind None"),
        ("nodes: [{name: a, kind: toaster}]\nlinks: []", "'toaster'"),
        ("nodes: [{name: 'a[0-2]', kind: device, host: 'h[0-1]'}]\nlinks: []", "2 hosts"),
        ("nodes: [{name: a, kind: device, plane: left}]\nlinks: []", "plane 'left'"),
        ("nodes: [{name: a, kind: device}]\nlinks: [{ends: a, bandwidth: 1}]", "ends 'a'"),
        ("nodes: [{name: a, kind: device}]\nlinks: [{ends: [a, b], bandwidth: 1}]", "'b' of the link a -> b"),
        ("nodes: [{name: a, kind: device}]\nlinks: [{ends: [a, b]}]", "bandwidth of"),
        (
            "nodes: [{name: 'a[0-4]', kind: device}]\n"
            "links: [{ends: ['a[0-1]', 'a[2-4]'], bandwidth: 1, pairwise: true}]",
            "2 and 3 names",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_topology(tmp_path / "file")
    assert str(error.value).startswith(str(tmp_path / "file"))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "file").write_bytes(b"<system>\xff\xfe</system>")
    with pytest.raises(ValueError, match="UTF-8"):
        read_topology(tmp_path / "file")


def test_a_short_file_cannot_fill_the_memory(monkeypatch):
    monkeypatch.setattr("collcomp.planner.topology.drawing._MOST_LINKS", 100)
    assert len(parse_topology("family: star\nhosts: 50\nbandwidth: 1 GB/s", "t").links) == 100
    with pytest.raises(ValueError, match="links: there are more than 100"):
        parse_topology("family: star\nhosts: 51\nbandwidth: 1 GB/s", "t")
    monkeypatch.setattr("collcomp.planner.topology.drawing._MOST_NODES", 10)
    with pytest.raises(ValueError, match="nodes: there are more than 10"):
        parse_topology("nodes: [{name: 'a[0-10]', kind: device}]\nlinks: []", "t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family: star\nhosts: 1000000000\nbandwidth: 1 GB/s", "hosts: there are more"),
        ("family: two_tier\nhosts: 2\nleaves: 2\nspines: 1000000000\nhost_bandwidth: 1\nuplink_bandwidth: 1", "spines"),
        ("family: torus\ndims: [2, 1000000000]\nbandwidth: 1", "dims"),
        ("family: torus\ndims: [10000, 10000]\nbandwidth: 1", "dims"),
        ("family: fat_tree\nk: 1000000000\nbandwidth: 1", "k: there are more"),
        ("family: dragonfly\nrouters: 99999\nhosts_per_router: 1\nglobal_links: 99999\nbandwidth: 1", "groups"),
        (f"family: star\nhosts: {'9' * 400}\nbandwidth: 1 GB/s", "hosts: there are more"),
    ],
)
def test_a_short_family_cannot_fill_the_memory(text, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(text, "t")


def test_a_missing_host_is_the_file_that_is_named(tmp_path):
    (tmp_path / "all.yaml").write_text("family: copies\nhost: gone.xml\nhosts: 3\n")
    with pytest.raises(ValueError, match=r"gone\.xml: it cannot be read \(No such file"):
        read_topology(tmp_path / "all.yaml")
