"""What a converted layer holds: the set of names that playing a tar in order would give."""

import pytest

from lazyfs.formats.arrange import Arrangement, arrange
from lazyfs.formats.tar import BadTar, TarMember
from lazyfs.formats.toc import Kind


def regular(path: str, offset: int = 0) -> TarMember:
    return TarMember(path.encode(), Kind.REGULAR, size=1, offset=offset)


def folder(path: str, mode: int = 0o755) -> TarMember:
    return TarMember(path.encode(), Kind.DIRECTORY, mode=mode)


def linked(path: str, target: str) -> TarMember:
    return TarMember(path.encode(), Kind.HARDLINK, link=target.encode())


def soft(path: str, target: str) -> TarMember:
    return TarMember(path.encode(), Kind.SYMLINK, link=target.encode())


def paths(arrangement: Arrangement) -> list[str]:
    return [member.path.decode() for member in arrangement.members]


def links(arrangement: Arrangement) -> dict[str, str]:
    return {
        member.path.decode(): member.link.decode()
        for member in arrangement.members
        if member.kind is Kind.HARDLINK
    }


def test_a_plain_tree_stays_as_it_is():
    members = [folder("a"), regular("a/b"), soft("a/c", "b"), linked("a/d", "a/b"), regular("e")]
    assert arrange(members) == Arrangement(tuple(members))


def test_missing_parents_stay_missing():
    # An entry for tmp would replace the mode of the layer below.
    assert paths(arrange([regular("tmp/x/y")])) == ["tmp/x/y"]


# Replacement


def test_of_equal_names_the_last_one_stays_in_its_own_place():
    found = arrange([regular("a", 1), regular("b", 2), regular("a", 3)])
    assert [(member.path, member.offset) for member in found.members] == [(b"b", 2), (b"a", 3)]


def test_a_directory_listed_again_keeps_its_place_and_children():
    found = arrange([folder("d", 0o700), regular("d/x"), folder("d", 0o711)])
    assert paths(found) == ["d", "d/x"]
    assert found.members[0].mode == 0o711


@pytest.mark.parametrize("last", [regular("d", 9), soft("d", "elsewhere")])
def test_what_replaces_a_directory_removes_what_was_in_it(last: TarMember):
    members = [folder("d"), regular("d/x"), folder("d/e"), regular("d/e/y"), regular("dd"), last]
    assert arrange(members).members == (regular("dd"), last)


def test_a_directory_replaces_a_file():
    found = arrange([regular("d", 1), folder("d"), regular("d/x")])
    assert found.members == (folder("d"), regular("d/x"))


def test_only_what_was_in_the_directory_is_removed():
    found = arrange([folder("d"), regular("d/x"), regular("d"), folder("d"), regular("d/y")])
    assert paths(found) == ["d", "d/y"]


def test_an_implied_directory_is_replaced_too():
    assert paths(arrange([regular("a/b/c"), regular("a/b")])) == ["a/b"]


@pytest.mark.parametrize("above", [regular("a"), soft("a", "b"), linked("a", "z")])
def test_nothing_may_lie_below_what_is_no_directory(above: TarMember):
    for below in (regular("a/x"), regular("a/x/y/z")):
        with pytest.raises(BadTar, match="expected a directory"):
            arrange([regular("z"), above, below])


# Hardlinks


def test_chains_become_direct():
    found = arrange([regular("a"), linked("b", "a"), linked("c", "b"), linked("d", "c")])
    assert links(found) == {"b": "a", "c": "a", "d": "a"}


def test_a_hardlink_means_the_file_of_its_time():
    # b and c are the first a, which loses its name; d is the second.
    members = [
        regular("a", 1),
        linked("b", "a"),
        linked("c", "b"),
        regular("a", 2),
        linked("d", "a"),
    ]
    found = arrange(members)
    assert links(found) == {"c": "b", "d": "a"}
    assert {member.path: member.offset for member in found.members if member.size} == {
        b"b": 1,
        b"a": 2,
    }


def test_a_link_survives_the_directory_of_its_file():
    found = arrange([regular("d/f", 7), linked("keep", "d/f"), regular("d", 8)])
    assert [(member.path, member.kind, member.offset) for member in found.members] == [
        (b"keep", Kind.REGULAR, 7),
        (b"d", Kind.REGULAR, 8),
    ]


def test_a_link_to_itself_is_the_file_listed_twice():
    found = arrange([regular("a", 5), linked("b", "a"), linked("a", "a")])
    assert sorted(paths(found)) == ["a", "b"]
    assert links(found) == {"a": "b"}
    assert found.members[0].offset == 5


def test_a_link_before_its_target_moves_behind_it():
    found = arrange([linked("b", "a"), linked("c", "b"), regular("x"), regular("a")])
    assert paths(found) == ["a", "b", "c", "x"]
    assert links(found) == {"b": "a", "c": "a"}


def test_links_to_symlinks_and_devices_are_links():
    null = TarMember(b"null", Kind.CHAR, dev_major=1, dev_minor=3)
    found = arrange([soft("s", "t"), linked("s2", "s"), null, linked("null2", "null")])
    assert links(found) == {"s2": "s", "null2": "null"}


def test_links_to_nothing_to_directories_and_in_circles_are_refused():
    with pytest.raises(BadTar, match="not in the layer"):
        arrange([linked("a", "gone")])
    with pytest.raises(BadTar, match="not in the layer"):
        arrange([linked("a", ".no.prefetch.landmark"), regular(".no.prefetch.landmark")])
    with pytest.raises(BadTar, match="expected a file"):
        arrange([folder("d"), linked("a", "d")])
    with pytest.raises(BadTar, match="circle"):
        arrange([linked("a", "b"), linked("b", "c"), linked("c", "a")])
    with pytest.raises(BadTar, match="circle"):
        arrange([linked("a", "a")])


# Names of the format's own


def test_landmarks_and_tocs_of_an_earlier_conversion_are_dropped():
    names = ("stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark")
    members = [*map(regular, names), regular("a"), *(regular(f"sub/{name}") for name in names)]
    assert paths(arrange(members)) == ["a", *(f"sub/{name}" for name in names)]
    with pytest.raises(BadTar, match="expected a file of an eStargz layer"):
        arrange([folder(".prefetch.landmark")])
    with pytest.raises(BadTar, match="expected a file of an eStargz layer"):
        arrange([regular("stargz.index.json/x")])


# Order


def test_prioritised_files_come_first_in_their_order_after_what_they_need():
    members = [
        folder(""),
        folder("a"),
        regular("a/1"),
        regular("a/2"),
        folder("b"),
        regular("b/3"),
        linked("a/4", "b/3"),
    ]
    found = arrange(members, [b"a/2", b"a/4", b"a/2"])
    assert paths(found) == ["", "a", "a/2", "b", "b/3", "a/4", "a/1"]
    assert found.prioritized == 6
    assert found.missing == ()


def test_missing_prioritised_files_are_told():
    found = arrange([regular("a")], [b"x", b"a", b"y/z"])
    assert (found.prioritized, found.missing) == (1, (b"x", b"y/z"))
    assert arrange([regular("a")], [b"x"]).prioritized == 0


# Hostile input costs what it says


def test_long_chains_and_many_replacements_take_little_time():
    forward = [linked(f"l{number}", f"l{number + 1}") for number in range(20_000)]
    found = arrange([*forward, regular("l20000")])
    assert set(links(found).values()) == {"l20000"}
    flips = [make("d") for _ in range(10_000) for make in (folder, regular)]
    assert paths(arrange([regular(f"d/{number}") for number in range(10_000)] + flips)) == ["d"]
    deep = [regular("/".join(["d"] * depth) + "/f") for depth in range(1, 1000)]
    assert len(arrange(deep).members) == 999
