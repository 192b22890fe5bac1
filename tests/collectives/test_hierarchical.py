"""Two tiers: what crosses between groups, which layouts do, and whose they are."""

import numpy as np
import pytest
from helpers import F32, operands, outcomes, reference, run, same_bits, two_tiers

from collcomp.codecs import as_codec
from collcomp.collectives.hierarchical import pieces
from collcomp.planner.layout import VARIABLE, Layout
from collcomp.transports.local import LocalTransport


def allreduce(comm, count, *, codec="int8", algorithm="hierarchical"):
    x = operands(comm.size, count)[comm.rank]
    comm.allreduce(x, result := np.full_like(x, 7), codec=codec, algorithm=algorithm)
    return result


def layout(*groups):
    return Layout(tuple(range(sum(map(len, groups)))), groups)


@pytest.mark.parametrize("groups", [two_tiers(6), two_tiers(4), ((0,), (1,), (2,)), ((1, 0, 2),)])
@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_every_element_has_one_owner(groups, count):
    for block in (1, 32):
        parts = pieces(count, groups, block)
        assert sorted(parts) == list(range(sum(map(len, groups))))
        owned = sorted(i for part in parts.values() for i in range(part.start, part.stop))
        assert owned == list(range(count))
        assert all(part.start % block == 0 or part.start == count for part in parts.values())


@pytest.mark.parametrize(
    ("groups", "count"), [(two_tiers(4), 300_000), (two_tiers(6), 300_000), (two_tiers(8), 250_000)]
)
def test_bytes_are_those_of_the_formula(monkeypatch, groups, count):
    """2 (G-1)/G F/L a rank leave each group, and inside values travel as they are once, and frames once."""
    size, members, count = sum(map(len, groups)), len(groups[0]), 300_000
    group_of = {rank: g for g, group in enumerate(groups) for rank in group}
    sent = np.zeros((size, 2))

    def counted(original):
        def send(self, buf, dest, tag):
            sent[self.rank, int(group_of[self.rank] == group_of[dest])] += buf.nbytes
            return original(self, buf, dest, tag)

        return send

    for name in ("isend", "lend"):
        monkeypatch.setattr(LocalTransport, name, counted(getattr(LocalTransport, name)))
    run(size, allreduce, count, layout=Layout(tuple(range(size)), groups))
    codec, others = as_codec("int8"), len(groups) - 1
    frame = codec.encode(operands(1, count)[0], np.empty(codec.max_encoded_nbytes(count, F32), np.uint8))
    between = 2 * others / len(groups) * frame / members
    inside = (members - 1) / members * (count * 4 + frame)
    np.testing.assert_allclose(sent[:, 0], between, rtol=0.05)
    np.testing.assert_allclose(sent[:, 1], inside, rtol=0.05)


def test_the_sum_of_a_group_is_rounded_not_its_operands():
    """Operands that cancel inside their group are not seen outside."""

    def program(comm):
        x = operands(1, 512)[0] * np.array((-1e6, 1e6, 0.5, 0.25), F32)[comm.rank]
        comm.allreduce(x, result := np.empty_like(x), codec="int8", algorithm="hierarchical")
        return float(np.abs(result - 0.75 * operands(1, 512)[0]).max())

    assert max(run(4, program, layout=layout((0, 1), (2, 3)))) < 2 / 127
    assert min(run(4, program, layout=layout((0, 2), (1, 3)))) > 1000


def test_groups_of_one_are_direct():
    found = run(3, allreduce, 5000, layout=layout((0,), (1,), (2,)))
    assert same_bits(*found, run(3, lambda comm: allreduce(comm, 5000, algorithm="direct"))[0])


def test_measuring_the_error_changes_no_bit():
    options = {"layout": layout((2, 0), (1, 3))}
    assert same_bits(*run(4, allreduce, 5000, **options), *run(4, allreduce, 5000, measure_error=True, **options))


def test_a_ring_visits_ranks_in_the_layouts_order(monkeypatch):
    seen = set()

    def isend(self, buf, dest, tag, original=LocalTransport.isend):
        seen.add((self.rank, dest))
        return original(self, buf, dest, tag)

    monkeypatch.setattr(LocalTransport, "isend", isend)
    order = (2, 0, 3, 1)
    for result in run(4, lambda comm: allreduce(comm, 1000, codec="identity", algorithm="ring"), layout=Layout(order)):
        np.testing.assert_allclose(result, reference(operands(4, 1000)), atol=1e-6)
    assert seen == {(order[i - 1], order[i]) for i in range(4)}


# ---------------------------------------------------------------------- layouts that do, and that do not


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, ["hierarchical", "layout", VARIABLE]),
        (Layout((0, 1, 2)), ["hierarchical", "layout", VARIABLE]),
        (layout((0, 1), (2,)), ["equal size", "(2,)"]),
    ],
)
def test_without_equal_groups_nothing_is_sent(given, words):
    for error in outcomes(3, allreduce, 100, layout=given):
        assert isinstance(error, ValueError)
        assert all(word in str(error) for word in words)


def test_a_layout_of_other_ranks_is_refused():
    with pytest.raises(ValueError, match="layout: of 2 ranks, the communicator has 3"):
        run(3, allreduce, 100, layout=Layout((0, 1)))


def test_layout_from_a_file(tmp_path, monkeypatch):
    path = tmp_path / "layout.json"
    layout((3, 0), (1, 2)).save(path)
    expected = run(4, allreduce, 1000, layout=layout((3, 0), (1, 2)))
    assert same_bits(*run(4, allreduce, 1000, layout=path), *expected)
    monkeypatch.setenv(VARIABLE, str(path))
    assert same_bits(*run(4, allreduce, 1000), *expected)


def test_the_environments_layout_is_for_communicators_of_its_size(tmp_path, monkeypatch):
    Layout((1, 0), ((0,), (1,))).save(tmp_path / "layout.json")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "layout.json"))

    def program(comm):
        allreduce(comm, 100, algorithm="ring")
        return comm.records[-1].reason

    assert run(3, program)[0] == f"{VARIABLE}: of 2 ranks, the communicator has 3"
    assert run(2, program)[0] == ""
    with pytest.raises(ValueError, match=f"{VARIABLE}: of 2 ranks, the communicator has 3"):
        run(3, allreduce, 100)


@pytest.mark.parametrize("text", [None, "no JSON", '{"order": [0, 0, 1]}', "[0, 1, 2]"])
def test_a_broken_file_is_for_those_who_need_it(tmp_path, monkeypatch, text):
    path = tmp_path / "layout.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(VARIABLE, str(path))
    assert same_bits(*run(3, lambda comm: allreduce(comm, 100, algorithm="direct")))
    for error in outcomes(3, lambda comm: allreduce(comm, 100, algorithm="ring")):
        assert isinstance(error, ValueError)
        assert VARIABLE in str(error)
        assert str(path) in str(error)
