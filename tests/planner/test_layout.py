"""Layouts: what they refuse, the part that a subset of ranks has, and files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.planner.layout import Layout, layout_for


@st.composite
def layouts(draw):
    size = draw(st.integers(1, 12))
    cuts = sorted(draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
    members = draw(st.permutations(range(size)))
    groups = tuple(tuple(members[a:b]) for a, b in zip([0, *cuts], [*cuts, size], strict=True))
    return Layout(tuple(draw(st.permutations(range(size)))), groups)


@pytest.mark.parametrize(
    ("order", "groups", "name"),
    [
        ((0, 2), (), "order"),
        ((0, 0, 1), (), "order"),
        ((1, 0), ((0,),), "groups"),
        ((1, 0), ((0, 1), (1,)), "groups"),
        ((0.0, 1.0), (), "order"),
        ((0, True), (), "order"),
        ((1, 0), ((0.0,), (1,)), "groups"),
    ],
)
def test_every_rank_is_named_once(order, groups, name):
    with pytest.raises(ValueError, match=name):
        Layout(order, groups)


@given(layouts())
def test_files_give_back_what_was_saved(tmp_path_factory, layout):
    path = tmp_path_factory.mktemp("layouts") / "layout.json"
    layout.save(path)
    assert Layout.load(path) == layout == layout_for(layout.size, path)


@given(layouts(), st.data())
def test_some_ranks_keep_their_order_and_their_groups(layout, data):
    members = data.draw(st.lists(st.integers(0, layout.size - 1), unique=True, min_size=1))
    part = layout.among(members)
    assert [members[rank] for rank in part.order] == [rank for rank in layout.order if rank in members]
    kept = [[rank for rank in group if rank in members] for group in layout.groups]
    assert [[members[rank] for rank in group] for group in part.groups] == [group for group in kept if group]


@pytest.mark.parametrize("text", ["", '{"order": [0.0, 1.0]}', "[" * 100_000])
def test_files_that_are_no_layout(tmp_path, text):
    (tmp_path / "layout").write_text(text)
    with pytest.raises(ValueError, match=r"is no file that Layout\.save wrote"):
        Layout.load(tmp_path / "layout")


def test_all_ranks_in_another_order():
    assert Layout((0, 1, 2), ((0, 1), (2,))).among([2, 0, 1]) == Layout((1, 2, 0), ((1, 2), (0,)))
