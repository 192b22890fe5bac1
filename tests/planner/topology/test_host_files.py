"""What NCCL, hwloc and nvidia-smi write of a host."""

from pathlib import Path

import pytest

from collcomp.planner.topology.files import parse_topology, read_topology

SAMPLES = Path(__file__).parent / "samples"


def bandwidths(topology):
    """Of cables, in GB/s, without the host's name; each must be the same both ways."""
    found = {}
    for (source, dest), link in topology.links.items():
        assert topology.links[dest, source].bandwidth == link.bandwidth
        found[frozenset(name.removeprefix("host0.") for name in (source, dest))] = link.bandwidth / 1e9
    return {tuple(sorted(ends)): pytest.approx(value) for ends, value in found.items()}


def test_nccl_with_nvswitch():
    topology = read_topology(SAMPLES / "nccl-hgx-h100.xml")
    assert topology.devices == ("host0.gpu1", "host0.gpu0")  # by rank
    assert {topology.nodes[name].host for name in topology.nodes} == {"host0"}
    assert bandwidths(topology) == {
        ("gpu0", "nvswitch"): 18 * 20.6,
        ("gpu1", "nvswitch"): 18 * 20.6,
        ("gpu0", "pci.0000:16:00.0"): 48,
        ("gpu1", "pci.0000:98:00.0"): 48,
        ("numa0", "pci.0000:16:00.0"): 48,
        ("numa1", "pci.0000:98:00.0"): 48,
        ("nic.0000:19:00.0", "pci.0000:16:00.0"): 48,
        ("mlx5_0", "nic.0000:19:00.0"): 50,
        ("nic.0000:9b:00.0", "pci.0000:98:00.0"): 12,
        ("mlx5_1", "nic.0000:9b:00.0"): 25,
        ("mlx5_1.port2", "nic.0000:9b:00.0"): 25,
        ("eth0", "numa1"): 1.25,
        ("numa0", "numa1"): 22,
    }
    assert len(topology.ports) == 4


def test_nccl_with_nvlinks_between_gpus_of_which_one_is_not_used():
    topology = read_topology(SAMPLES / "nccl-v100-direct.xml")
    assert bandwidths(topology) == {("gpu0", "gpu1"): 40, ("gpu0", "numa0"): 12, ("gpu1", "numa0"): 12}


def test_nccl_with_several_hosts_in_one_nvlink_domain():
    cpu = (
        '<cpu host_hash="{}" numaid="0" arch="arm64">'
        '<pci busid="0008:01:00.0" link_speed="32.0 GT/s PCIe" link_width="16">'
        '<gpu dev="0" sm="100" rank="{}"><nvlink target="fffffff:ff:ff.0" count="18" tclass="0x068000"/>'
        '<c2c bw="44712" count="10"/></gpu></pci></cpu>'
    )
    topology = parse_topology(f'<system version="2">{cpu.format("0xa", 0)}{cpu.format("0xb", 1)}</system>', "racks")
    assert topology.hosts == {"host0": ("host0.gpu0",), "host1": ("host1.gpu0",)}
    assert topology.links["host1.gpu0", "nvswitch"].bandwidth == pytest.approx(18 * 40.1e9)
    assert topology.links["host1.gpu0", "host1.numa0"].bandwidth == pytest.approx(48e9 + 447.12e9)
    assert topology.nodes["nvswitch"].host is None


def test_nccl_files_for_virtual_machines_have_bare_devices():
    text = """<system version="1"><cpu numaid="0" arch="x86_64" vendor="AuthenticAMD" familyid="23">
      <pci busid="ffff:ff:01.0" class="0x060400" link_speed="16 GT/s" link_width="16">
      <pci busid="0001:00:00.0" class="0x030200" link_speed="16 GT/s" link_width="16"/>
      <pci busid="0101:00:00.0" class="0x020700" link_speed="16 GT/s" link_width="16"/></pci></cpu></system>"""
    topology = parse_topology(text, "vm")
    assert topology.devices == ("host0.gpu0",)
    assert topology.ports == ("host0.nic.0101:00:00.0",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('count="5"', 'count="five"', "<nvlink>: count='five'"),
        ('sm="90"', "", "<gpu>: it has no sm"),
        ('tclass="0x068000"', 'tclass="0x010802"', "<nvlink>: tclass='0x010802'"),
        ('busid="0000:18:00.0"', "", "<pci>: it has no busid"),
        ('name="mlx5_0"', "", "<net>: it has no name"),
        ('link_width="16"', 'link_width="x"', "<pci>: link_width='x'"),
        ('<gpu dev="1"', '<gpu dev="0"', r"'host0\.gpu0' stands twice"),
        ("</system>", "", "no XML"),
        ('<system version="1">', "<!DOCTYPE s [<!ENTITY a 'a'>]>\n<system>", "entities are not read"),
        ('<system version="1">', "<!doctype s\n [<!ELEMENT a ANY>]>\n<system>", "entities are not read"),
        ("system", "graphs", "<graphs>"),
    ],
)
def test_damaged_nccl_files_are_named(tmp_path, old, new, message):
    text = (SAMPLES / "nccl-hgx-h100.xml").read_text()
    assert old in text
    (tmp_path / "dump.xml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        read_topology(tmp_path / "dump.xml")
    assert "dump.xml: " in str(error.value)


def test_hwloc_with_nvswitches():
    topology = read_topology(SAMPLES / "hwloc-nvswitch.xml")
    assert topology.devices == ("host0.gpu0", "host0.gpu1", "host0.gpu2")
    assert topology.ports == ("host0.mlx5_0",)
    pcie = 15.753846
    assert bandwidths(topology) == {
        ("gpu0", "nvswitch"): 150,
        ("gpu1", "nvswitch"): 150,
        ("gpu2", "nvswitch"): 150,
        ("bridge604", "gpu0"): pcie,  # the bus 34, though it comes second
        ("bridge604", "gpu1"): pcie,
        ("bridge604", "mlx5_0"): pcie,
        ("bridge605", "gpu2"): pcie,
        ("bridge604", "bridge713"): pcie,
        ("bridge605", "bridge714"): pcie,
        ("bridge713", "package0"): pcie,
        ("bridge714", "package1"): pcie,
        ("package0", "package1"): 10,
    }


def test_hwloc_3_counts_kinds_of_devices_in_bits():
    text = (SAMPLES / "hwloc-nvswitch.xml").read_text()
    for old, new in (
        ('version="2.0"', 'version="3.0"'),
        ('osdev_type="1"', 'osdev_type="12"'),
        ('osdev_type="2"', 'osdev_type="16"'),
        ('osdev_type="3"', 'osdev_type="32"'),
    ):
        text = text.replace(old, new)
    assert parse_topology(text, "hwloc-nvswitch") == read_topology(SAMPLES / "hwloc-nvswitch.xml")
    with pytest.raises(ValueError, match=r"version='4\.0'"):
        parse_topology(text.replace('version="3.0"', 'version="4.0"'), "t")


def test_hwloc_without_gpus_and_speeds():
    text = """<?xml version="1.0" encoding="UTF-8"?>
    <!DOCTYPE topology SYSTEM "hwloc2.dtd">
    <topology version="2.0"><object type="Machine" gp_index="1">
      <object type="Package" os_index="0" gp_index="3"><info name="CPUVendor" value="GenuineIntel"/></object>
      <object type="Package" os_index="1" gp_index="4"/>
      <object type="Bridge" gp_index="18" bridge_type="0-1" depth="0" bridge_pci="0000:[00-00]">
        <object type="PCIDev" gp_index="17" pci_busid="0000:00:02.0" pci_type="0180 [1af4:1042]" pci_link_speed="0.0"/>
        <object type="PCIDev" gp_index="16" pci_busid="0000:00:03.0" pci_type="0200 [1af4:1041]" pci_link_speed="0.0">
          <object type="OSDev" gp_index="20" name="eth0" osdev_type="2"/></object>
      </object></object></topology>"""
    topology = parse_topology(text, "vm")
    assert topology.devices == ("host0.package0", "host0.package1")
    assert bandwidths(topology) == {
        ("package0", "package1"): 6,
        ("bridge18", "package0"): 12,
        ("bridge18", "eth0"): 12,
    }
    with pytest.raises(ValueError, match="pci_link_speed='fast'"):
        parse_topology(text.replace('"0.0"', '"fast"'), "vm")
    with pytest.raises(ValueError, match="Package"):
        parse_topology(text.replace("Package", "Group"), "vm")


def test_hwloc_with_nvlinks_to_processors():
    text = """<topology version="2.0"><object type="Machine" gp_index="1"><info name="Architecture" value="ppc64le"/>
      <object type="Package" gp_index="3"><object type="Bridge" gp_index="304" bridge_type="0-1">
        <object type="PCIDev" gp_index="282" pci_busid="0002:01:00.0" pci_type="0302 [10de:15f9]" pci_link_speed="15.7">
          <object type="OSDev" gp_index="332" name="nvml0" osdev_type="1"/></object></object></object>
      <object type="Package" gp_index="134"/></object>
      <distances2hetero nbobjs="2" kind="25" name="NVLinkBandwidth"><indexes>OSDev:332 Package:3 </indexes>
      <u64values>1000000 40000 40000 1000000 </u64values></distances2hetero></topology>"""
    topology = parse_topology(text, "power8")
    assert topology.links["host0.gpu0", "host0.package0"].bandwidth == 40e9
    assert topology.links["host0.package0", "host0.package1"].bandwidth == 32e9
    with pytest.raises(ValueError, match="3 u64values are not the square of 2"):
        parse_topology(text.replace("40000 1000000 <", "40000 <"), "power8")


def test_nvidia_smi_with_nvswitch():
    topology = read_topology(SAMPLES / "nvidia-smi-h100.txt")
    assert topology.devices == tuple(f"host0.gpu{i}" for i in range(4))
    assert topology.ports == ("host0.mlx5_0", "host0.mlx5_3")
    expected = {(f"gpu{i}", "nvswitch"): 18 * 20 for i in range(4)}
    for near, far, card in ((0, 1, "mlx5_0"), (2, 3, "mlx5_3")):
        expected |= {
            (f"gpu{near}", f"pix{near}"): 12,
            (card, f"pix{near}"): 12,
            (f"node{near}", f"pix{near}"): 12,
            (f"gpu{far}", f"node{near}"): 12,
            (f"node{near}", "sys0"): 6,
        }
    assert bandwidths(topology) == expected


def test_nvidia_smi_with_nvlinks_between_gpus():
    topology = read_topology(SAMPLES / "nvidia-smi-v100.txt")
    links = {ends: value for ends, value in bandwidths(topology).items() if ends[1].startswith("gpu")}
    twice = {("gpu0", "gpu3"), ("gpu1", "gpu2"), ("gpu2", "gpu3")}
    assert links == {
        (f"gpu{i}", f"gpu{j}"): 40 if (f"gpu{i}", f"gpu{j}") in twice else 20 for i in range(4) for j in range(i + 1, 4)
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nGPU3 ", "\nGPU9 ", "no row GPU3"),
        ("PIX", "PIQ", "'PIQ' between GPU0 and NIC0"),
        ("SYS      X\n", "SYS\n", "the row NIC1"),
    ],
)
def test_damaged_matrices_are_named(old, new, message):
    text = (SAMPLES / "nvidia-smi-h100.txt").read_text()
    assert old in text
    with pytest.raises(ValueError, match=message):
        parse_topology(text.replace(old, new), "t")
