"""Merging layers: one test for each rule, then random stacks against the plain reference."""

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from lazyfs.formats.tocs.toc import Kind, Toc, TocEntry
from lazyfs.rootfs.merge import BadLayer
from lazyfs.rootfs.whiteout import is_opaque, is_whiteout, whiteout_target
from tests.support.formats.naive_merge import naive_facts, naive_merge
from tests.support.formats.rootfs import (
    device,
    directory,
    facts_of,
    hardlink,
    index_of,
    listing,
    paths_of,
    regular,
    symlink,
    toc_of,
)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (b".wh.a", b"a"),
        (b".wh..a", b".a"),
        (b".wh.", None),
        (b".wh..wh..opq", None),
        (b".wh..wh.plnk", None),
        (b".wh", None),
        (b"a.wh.b", None),
        (b".wh.wh.a", b"wh.a"),
    ],
)
def test_whiteout_target(name: bytes, target: bytes | None) -> None:
    assert whiteout_target(name) == target
    assert is_whiteout(name) == name.startswith(b".wh.")
    assert is_opaque(name) == (name == b".wh..wh..opq")


class TestWhiteouts:
    LOWER = toc_of(
        directory(b"d"), regular(b"d/a"), regular(b"d/b"), directory(b"d/e"), regular(b"d/e/f")
    )

    def test_removes_a_file(self) -> None:
        assert listing(self.LOWER, toc_of(regular(b"d/.wh.a"))) == [b"d", b"d/b", b"d/e", b"d/e/f"]

    def test_removes_a_directory_with_all_below(self) -> None:
        assert listing(self.LOWER, toc_of(regular(b"d/.wh.e"))) == [b"d", b"d/a", b"d/b"]

    @pytest.mark.parametrize("reverse", [False, True])
    def test_spares_its_own_layer_whatever_the_order(self, reverse: bool) -> None:
        entries = [regular(b"d/.wh.e"), directory(b"d/e"), regular(b"d/e/g")]
        upper = toc_of(*(reversed(entries) if reverse else entries))
        assert listing(self.LOWER, upper) == [b"d", b"d/a", b"d/b", b"d/e", b"d/e/g"]

    @pytest.mark.parametrize("reverse", [False, True])
    def test_opaque_hides_all_lower_children(self, reverse: bool) -> None:
        entries = [regular(b"d/.wh..wh..opq"), regular(b"d/new")]
        upper = toc_of(*(reversed(entries) if reverse else entries))
        assert listing(self.LOWER, upper) == [b"d", b"d/new"]

    def test_opaque_root(self) -> None:
        assert listing(self.LOWER, toc_of(regular(b".wh..wh..opq"), regular(b"x"))) == [b"x"]

    def test_opaque_without_an_entry_keeps_the_attributes(self) -> None:
        lower = toc_of(directory(b"d", mode=0o700, uid=5), regular(b"d/a"))
        index, _ = index_of(lower, toc_of(regular(b"d/.wh..wh..opq")))
        facts = facts_of(index)
        assert list(facts) == [b"", b"d"]
        assert (facts[b"d"].mode, facts[b"d"].uid) == (0o40700, 5)

    def test_acts_on_lower_layers_only(self) -> None:
        assert listing(toc_of(regular(b"d/.wh.a")), self.LOWER) == listing(self.LOWER)
        assert listing(toc_of(regular(b"a"), regular(b".wh.a"))) == [b"a"]

    def test_never_appears(self) -> None:
        upper = toc_of(
            regular(b".wh..wh.plnk"),
            directory(b".wh..wh.orph"),
            regular(b".wh..wh.orph/x"),
            directory(b".wh.gone"),
            regular(b".wh.gone/x"),
            symlink(b"s/.wh.t", b"u"),
        )
        assert listing(upper) == [b"s"]

    def test_a_whiteout_of_any_kind_counts(self) -> None:
        lower = toc_of(regular(b"a"), regular(b"b"))
        assert listing(lower, toc_of(directory(b".wh.a"), hardlink(b".wh.b", b"x"))) == []

    def test_name_that_only_contains_the_prefix(self) -> None:
        assert listing(toc_of(regular(b"a.wh.b"), regular(b"c/d.wh."))) == [
            b"a.wh.b",
            b"c",
            b"c/d.wh.",
        ]


class TestReplacing:
    def test_file_over_directory(self) -> None:
        lower = toc_of(directory(b"d"), regular(b"d/a"))
        assert listing(lower, toc_of(regular(b"d"))) == [b"d"]

    def test_directory_over_file(self) -> None:
        assert listing(toc_of(regular(b"d")), toc_of(directory(b"d"))) == [b"d"]
        index, _ = index_of(toc_of(regular(b"d")), toc_of(directory(b"d"), regular(b"d/a")))
        assert facts_of(index)[b"d"].mode == 0o40755

    def test_directory_over_directory(self) -> None:
        lower = toc_of(
            directory(b"d", mode=0o700, xattrs=((b"user.lower", b"1"),)), regular(b"d/a", b"low")
        )
        upper = toc_of(
            directory(b"d", mode=0o1777, uid=3, mtime_seconds=5, xattrs=((b"user.upper", b"2"),)),
            regular(b"d/b"),
        )
        index, _ = index_of(lower, upper)
        facts = facts_of(index)
        assert sorted(facts) == [b"", b"d", b"d/a", b"d/b"]
        merged = facts[b"d"]
        assert (merged.mode, merged.uid, merged.mtime) == (0o41777, 3, (5, 0))
        assert merged.xattrs == {b"user.upper": b"2"}

    def test_implicit_parent_keeps_lower_attributes(self) -> None:
        lower = toc_of(directory(b"d", mode=0o700, uid=7), regular(b"d/a"))
        index, _ = index_of(lower, toc_of(regular(b"d/b")))
        facts = facts_of(index)
        assert (facts[b"d"].mode, facts[b"d"].uid, facts[b"d"].mtime[0]) == (
            0o40700,
            7,
            1_700_000_000,
        )

    def test_implicit_parent_over_nothing(self) -> None:
        index, _ = index_of(toc_of(regular(b"x/y/z")))
        for path in (b"", b"x", b"x/y"):
            facts = facts_of(index)[path]
            assert (facts.mode, facts.uid, facts.gid, facts.mtime) == (0o40755, 0, 0, (0, 0))

    def test_whited_out_directory_that_comes_back_implicitly(self) -> None:
        lower = toc_of(directory(b"d", mode=0o700), regular(b"d/a"))
        index, _ = index_of(lower, toc_of(regular(b".wh.d"), regular(b"d/b")))
        facts = facts_of(index)
        assert sorted(facts) == [b"", b"d", b"d/b"]
        assert facts[b"d"].mode == 0o40755

    def test_symlink_as_parent_is_never_followed(self) -> None:
        lower = toc_of(directory(b"etc"), regular(b"etc/a"), symlink(b"link", b"etc"))
        index, _ = index_of(lower, toc_of(regular(b"link/a", b"new")))
        facts = facts_of(index)
        assert sorted(facts) == [b"", b"etc", b"etc/a", b"link", b"link/a"]
        assert facts[b"link"].mode == 0o40755
        assert facts[b"etc/a"].size == 0

    def test_root_takes_the_topmost_entry(self) -> None:
        index, _ = index_of(
            toc_of(directory(b"", mode=0o700)),
            toc_of(directory(b"", mode=0o711, uid=9)),
            toc_of(regular(b"a")),
        )
        assert (index.inode(index.root_nid).mode, index.inode(index.root_nid).uid) == (0o40711, 9)

    def test_root_that_is_no_directory(self) -> None:
        with pytest.raises(BadLayer, match="root is not a directory"):
            index_of(toc_of(symlink(b"", b"/")))


class TestOneLayer:
    def test_last_entry_wins(self) -> None:
        index, _ = index_of(toc_of(regular(b"a", b"old"), regular(b"a", b"newer")))
        assert facts_of(index)[b"a"].size == 5
        # The payload of the first one keeps its place in the device.
        nid = index.lookup(index.root_nid, b"a")
        extent = index.extent(nid)
        assert extent is not None
        assert (extent.device, extent.offset, extent.size) == (1, 4096, 5)

    def test_a_directory_named_again_keeps_its_children(self) -> None:
        index, _ = index_of(
            toc_of(directory(b"d", mode=0o700), regular(b"d/a"), directory(b"d", mode=0o711))
        )
        facts = facts_of(index)
        assert sorted(facts) == [b"", b"d", b"d/a"]
        assert facts[b"d"].mode == 0o40711

    def test_child_before_its_parent(self) -> None:
        index, _ = index_of(toc_of(regular(b"d/e/a"), directory(b"d/e", mode=0o700)))
        assert facts_of(index)[b"d/e"].mode == 0o40700

    def test_file_replaces_directory(self) -> None:
        toc = toc_of(directory(b"d"), regular(b"d/e/a"), regular(b"d"), regular(b"d2"))
        assert listing(toc) == [b"d", b"d2"]

    def test_directory_replaces_file_and_starts_empty(self) -> None:
        toc = toc_of(
            regular(b"d/e/a"), regular(b"d"), directory(b"d"), directory(b"d/e"), regular(b"d/e/b")
        )
        assert listing(toc) == [b"d", b"d/e", b"d/e/b"]

    def test_nothing_goes_back_into_a_replaced_directory(self) -> None:
        toc = toc_of(regular(b"d/e/a"), regular(b"d"), regular(b"d/e/b"))
        assert listing(toc) == [b"d", b"d/e", b"d/e/b"]

    def test_whiteouts_go_with_the_directory_that_held_them(self) -> None:
        lower = toc_of(regular(b"d/a"))
        upper = toc_of(regular(b"d/.wh.a"), regular(b"d"), directory(b"d"))
        assert listing(lower, upper) == [b"d", b"d/a"]

    def test_empty_layers(self) -> None:
        assert listing() == []
        assert listing(toc_of()) == []
        assert listing(toc_of(), toc_of(regular(b"a")), toc_of()) == [b"a"]

    def test_landmarks_are_hidden_in_the_root_only(self) -> None:
        names = (b".prefetch.landmark", b".no.prefetch.landmark")
        toc = toc_of(
            *(regular(name, b"\x0f") for name in names),
            *(regular(b"sub/" + name, b"\x0f") for name in names),
            hardlink(b"kept", names[0]),
        )
        assert listing(toc) == [b"kept", b"sub", *sorted(b"sub/" + name for name in names)]
        assert listing(toc, toc) == listing(toc)


class TestHardlinks:
    def test_chain_and_forward_reference(self) -> None:
        toc = toc_of(hardlink(b"c", b"b"), hardlink(b"b", b"d/a"), regular(b"d/a", b"data"))
        index, built = index_of(toc)
        facts = facts_of(index)
        assert facts[b"b"].names == {b"b", b"c", b"d/a"}
        assert facts[b"c"].nlink == 3
        assert built.inode_count == 3

    def test_resolves_to_the_final_entry(self) -> None:
        toc = toc_of(regular(b"a", b"old"), hardlink(b"b", b"a"), regular(b"a", b"final"))
        facts = facts_of(index_of(toc)[0])
        assert facts[b"b"].names == {b"a", b"b"}
        assert facts[b"b"].size == 5

    def test_broken_ones_in_a_replaced_directory_do_not_count(self) -> None:
        toc = toc_of(
            hardlink(b"d/none", b"absent"), hardlink(b"d/self", b"d/self"), regular(b"d", b"x")
        )
        assert listing(toc) == [b"d"]

    def test_other_kinds(self) -> None:
        toc = toc_of(
            symlink(b"s", b"t"),
            hardlink(b"s2", b"s"),
            device(b"n", Kind.CHAR, 1, 3),
            hardlink(b"n2", b"n"),
        )
        facts = facts_of(index_of(toc)[0])
        assert facts[b"s2"].link == b"t"
        assert facts[b"s2"].nlink == 2
        assert facts[b"n2"].rdev == (1, 3)

    def test_survives_when_its_target_is_replaced_above(self) -> None:
        lower = toc_of(
            regular(b"a", b"old", mode=0o600), hardlink(b"b", b"a"), hardlink(b"c", b"a")
        )
        facts = facts_of(index_of(lower, toc_of(regular(b"a", b"newer")))[0])
        assert facts[b"a"].names == {b"a"}
        assert facts[b"b"].names == {b"b", b"c"}
        assert (facts[b"b"].nlink, facts[b"b"].size, facts[b"b"].mode) == (2, 3, 0o100600)

    def test_whiteout_of_one_name(self) -> None:
        lower = toc_of(regular(b"a", b"x"), hardlink(b"b", b"a"))
        facts = facts_of(index_of(lower, toc_of(regular(b".wh.a")))[0])
        assert facts[b"b"].nlink == 1
        assert b"a" not in facts

    def test_stays_in_its_own_layer(self) -> None:
        with pytest.raises(BadLayer, match="leads to b'a', which is not in the same layer"):
            index_of(toc_of(regular(b"a")), toc_of(hardlink(b"b", b"a")))

    @pytest.mark.parametrize(
        "entries",
        [
            [hardlink(b"a", b"a")],
            [hardlink(b"a", b"b"), hardlink(b"b", b"a")],
            [hardlink(b"a", b"b"), hardlink(b"b", b"c"), hardlink(b"c", b"b")],
        ],
    )
    def test_cycle(self, entries: list[TocEntry]) -> None:
        with pytest.raises(BadLayer, match="leads in a circle"):
            index_of(toc_of(*entries))

    def test_to_a_directory(self) -> None:
        with pytest.raises(BadLayer, match="leads to a directory"):
            index_of(toc_of(directory(b"d"), hardlink(b"a", b"d")))

    def test_to_itself_as_tar_writes_for_a_file_named_twice(self) -> None:
        facts = facts_of(index_of(toc_of(regular(b"a", b"data"), hardlink(b"a", b"a")))[0])
        assert (facts[b"a"].size, facts[b"a"].nlink) == (4, 1)

    def test_long_chain_in_linear_time(self) -> None:
        count = 30_000
        entries = [hardlink(b"%d" % n, b"%d" % (n + 1)) for n in range(count)]
        index, built = index_of(toc_of(*entries, regular(b"%d" % count, b"x")))
        assert built.inode_count == 2
        assert index.inode(index.lookup(index.root_nid, b"7")).nlink == count + 1

    def test_replaced_again_and_again_in_linear_time(self) -> None:
        entries = []
        for number in range(20_000):
            entries += [regular(b"d/%d" % number), regular(b"e/%d/x" % number)]
        for _ in range(20_000):
            entries += [directory(b"d"), regular(b"d")]
        assert len(listing(toc_of(*entries))) == 40_002


# Random stacks of layers.  Few names, so that layers and entries meet often.
NAMES = st.sampled_from(
    [b"a", b"b", b"c", b".wh.a", b".wh.b", b".wh..wh..opq", b".wh..wh.x", b".prefetch.landmark"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
TARGETS = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=2).map(b"/".join)
MODES = st.integers(0, 0o7777)
XATTR_NAMES = st.sampled_from(
    [b"user.x", b"user.lazyfs.schema", b"trusted.y", b"security.capability", b"system.z", b"user."]
)
XATTRS = st.dictionaries(XATTR_NAMES, st.binary(max_size=9), max_size=3).map(
    lambda found: tuple(sorted(found.items()))
)
ENTRIES = st.one_of(
    st.builds(
        lambda path, data, mode, xattrs: regular(path, data, mode=mode, xattrs=xattrs),
        PATHS, st.binary(max_size=3), MODES, XATTRS,
    ),
    st.builds(
        lambda path, mode, uid, xattrs: directory(path, mode=mode, uid=uid, xattrs=xattrs),
        st.one_of(PATHS, st.just(b"")), MODES, st.integers(0, 2**32 - 1), XATTRS,
    ),
    st.builds(symlink, PATHS, st.sampled_from([b"a", b"b/c", b"../x"])),
    st.builds(hardlink, PATHS, TARGETS),
    st.builds(device, PATHS, st.just(Kind.BLOCK), st.integers(0, 4095), st.integers(0, 2**20 - 1)),
)  # fmt: skip
STACKS = st.lists(st.lists(ENTRIES, max_size=8), max_size=4).map(
    lambda layers: [toc_of(*entries, seed=seed) for seed, entries in enumerate(layers)]
)


@given(STACKS)
@example([toc_of(regular(b"a/.wh..wh..opq"), regular(b"a/b")), toc_of(symlink(b"a", b"b"))])
@example([toc_of(regular(b"a/b")), toc_of(regular(b".wh.a"), regular(b"a/c"))])
def test_any_stack_equals_the_reference(tocs: list[Toc]) -> None:
    try:
        tree = naive_merge(tocs)
    except LookupError:
        event("broken hardlinks")
        with pytest.raises(BadLayer):
            index_of(*tocs)
        return
    index, built = index_of(*tocs)
    assert facts_of(index) == naive_facts(tree)
    assert built.inode_count == index.inode_count == len(set(tree.values()))
    for path, nid in paths_of(index):
        inode = tree[path]
        if inode.entry is not None and inode.entry.kind == Kind.REGULAR:
            extent = index.extent(nid)
            expected = None
            if inode.offset is not None:
                expected = (inode.layer + 1, inode.offset, inode.entry.size)
            found = extent and (extent.device, extent.offset, extent.size)
            assert found == expected


def test_the_reference_knows_its_letters() -> None:
    """The plain reference itself, on one stack worked out by hand."""
    lower = toc_of(directory(b"d"), regular(b"d/a"), regular(b"d/b"), regular(b"f"))
    upper = toc_of(regular(b"d/.wh.a"), regular(b"d/c"), regular(b".wh.f"), symlink(b"s", b"d"))
    assert sorted(naive_merge([lower, upper])) == [b"", b"d", b"d/b", b"d/c", b"s"]
