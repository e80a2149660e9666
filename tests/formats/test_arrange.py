"""What a converted layer holds: the set of names that playing a tar in order would give."""

import pytest

from lazyfs.formats.tars.arrange import Arrangement, arrange
from lazyfs.formats.tars.tar import BadTar, TarMember
from lazyfs.formats.tocs.toc import Kind


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


@pytest.mark.parametrize("above", [regular("a"), linked("a", "z")])
def test_nothing_may_lie_below_what_is_no_directory(above: TarMember):
    for below in (regular("a/x"), regular("a/x/y/z")):
        with pytest.raises(BadTar, match="is not a directory"):
            arrange([regular("z"), above, below])


# Symlinks on the way


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "../usr/lib", "usr/./x/../lib/"])
def test_a_name_below_a_symlink_is_one_of_its_directory(target: str):
    members = [folder("usr"), folder("usr/lib"), soft("lib", target), regular("lib/x", 7)]
    found = arrange(members)
    assert paths(found) == ["usr", "usr/lib", "lib", "usr/lib/x"]
    assert found.members[3].offset == 7


def test_a_symlink_leads_to_directories_that_are_not_in_the_layer():
    assert paths(arrange([soft("lib", "usr/lib"), regular("lib/a/b")])) == ["lib", "usr/lib/a/b"]


def test_symlinks_never_lead_out_of_the_root():
    members = [folder("a"), soft("a/up", "../../.."), regular("a/up/x"), regular("a/up/a/y")]
    assert paths(arrange(members)) == ["a", "a/up", "x", "a/y"]


def test_hardlinks_find_their_file_through_symlinks():
    members = [regular("usr/lib/f", 5), soft("lib", "usr/lib"), linked("h", "lib/f")]
    assert links(arrange(members)) == {"h": "usr/lib/f"}
    members = [regular("usr/lib/f", 5), soft("lib", "usr/lib"), linked("lib/h", "usr/lib/f")]
    assert links(arrange(members)) == {"usr/lib/h": "usr/lib/f"}


def test_a_step_back_from_a_file_needs_no_directory():
    """containerd looks up no name in the file, so nothing is wrong with it."""
    members = [regular("a", 5), regular("f", 5), linked("h", "a/../f")]
    assert links(arrange(members)) == {"h": "f"}
    for target in ("a/x/../../f", "a/f", "a/../f/x"):
        with pytest.raises(BadTar, match="not a directory"):
            arrange([regular("a", 5), regular("f", 5), linked("h", target)])


@pytest.mark.parametrize(
    ("members", "target", "expected"),
    [
        # From where a symlink leads, by the letter: d/m is a symlink itself, and not followed.
        ([regular("d/f"), soft("d/m", "../x/y"), soft("l", "d/m")], "l/../f", "d/f"),
        ([regular("d/f"), soft("d/m", "/x/y"), soft("l", "/d/m")], "l/../f", "d/f"),
        ([regular("f"), soft("l", "l")], "l/../f", "f"),
        # What the directory itself leads to is walked name by name, a symlink below by the letter.
        ([regular("q/f"), soft("s", "q/r"), soft("l", "s/..")], "l/f", "q/f"),
        ([regular("q/f"), soft("s", "q/r"), soft("a/l", "/s/..")], "a/l/f", "q/f"),
        ([regular("f"), soft("s", "q/r"), soft("a/l", "../s/..")], "a/l/f", "f"),
        ([regular("d/f"), soft("s", "q/r"), soft("l", "s/..")], "l/d/f", "d/f"),
    ],
)
def test_steps_back_from_symlinks_are_containerds(members, target, expected):
    assert links(arrange([*members, linked("h", target)])) == {"h": expected}


def test_a_hardlink_takes_the_symlink_away_by_which_its_file_was_found():
    with pytest.raises(BadTar, match="not a file before it"):
        arrange([regular("usr/f", 5), soft("l", "usr"), linked("l", "l/f")])


def test_a_directory_takes_the_place_of_a_symlink_when_it_is_named():
    members = [regular("usr/lib/f", 5), soft("lib", "usr/lib"), folder("lib"), regular("lib/x")]
    assert paths(arrange(members)) == ["usr/lib/f", "lib", "lib/x"]


def test_whiteouts_below_a_symlink_are_those_of_its_directory():
    members = [folder("usr/lib"), soft("lib", "usr/lib"), regular("lib/.wh.x")]
    assert paths(arrange(members)) == ["usr/lib", "lib", "usr/lib/.wh.x"]


@pytest.mark.parametrize("target", ["a", "b", "a/x", "./a/.", "/a"])
def test_symlinks_in_a_circle_are_refused(target: str):
    with pytest.raises(BadTar, match="too many symlinks"):
        arrange([soft("a", target), soft("b", "a"), regular("a/x")])


def test_a_format_s_own_names_are_found_through_symlinks_too():
    assert paths(arrange([soft("l", "."), regular("l/stargz.index.json")])) == ["l"]


# Whiteouts


@pytest.mark.parametrize("kind", list(Kind))
def test_only_the_name_makes_a_whiteout(kind: Kind):
    is_link = kind in (Kind.HARDLINK, Kind.SYMLINK)
    member = TarMember(b"d/.wh.x", kind, link=b"nowhere" if is_link else b"")
    (found,) = arrange([member]).members
    assert found.path == b"d/.wh.x"
    is_plain = kind in (Kind.HARDLINK, Kind.CHAR, Kind.BLOCK)
    assert found.kind is (Kind.REGULAR if is_plain else kind)


def test_no_name_is_below_a_whiteout_and_no_link_leads_to_one():
    members = [folder(".wh.d"), regular(".wh.d/x"), regular(".wh.e/y"), regular("z")]
    assert paths(arrange(members)) == [".wh.d", "z"]
    with pytest.raises(BadTar, match="not a file before it"):
        arrange([regular(".wh.a"), linked("b", ".wh.a")])


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh."])
def test_a_whiteout_of_nothing_is_refused(name: str):
    with pytest.raises(BadTar, match="whiteout that names nothing"):
        arrange([regular(name)])


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
    assert paths(found) == ["a", "b"]
    assert links(found) == {"b": "a"}
    assert found.members[0].offset == 5


def test_what_a_link_says_does_not_go_for_its_file():
    file = TarMember(b"a", Kind.REGULAR, 0o600, 1, 2, 3, xattrs=((b"user.a", b"1"),))
    link = TarMember(b"b", Kind.HARDLINK, 0o755, 7, 8, link=b"a", mtime_seconds=9)
    assert arrange([file, link]).members == (file, link)


def test_links_to_symlinks_and_devices_are_links():
    null = TarMember(b"null", Kind.CHAR, dev_major=1, dev_minor=3)
    found = arrange([soft("s", "t"), linked("s2", "s"), null, linked("null2", "null")])
    assert links(found) == {"s2": "s", "null2": "null"}


def test_links_to_nothing_and_to_directories_are_refused():
    for members in (
        [linked("a", "gone")],
        [linked("a", ".no.prefetch.landmark"), regular(".no.prefetch.landmark")],
        [linked("b", "a"), regular("a")],
        [linked("a", "a")],
        [regular("a"), regular("d/x"), linked("d", "d/x")],
    ):
        with pytest.raises(BadTar, match="not a file before it"):
            arrange(members)
    with pytest.raises(BadTar, match="hard link to a directory"):
        arrange([folder("d"), linked("a", "d")])


# Names of the format's own


def test_landmarks_and_tocs_of_an_earlier_conversion_are_dropped():
    names = ("stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark")
    members = [*map(regular, names), regular("a"), *(regular(f"sub/{name}") for name in names)]
    assert paths(arrange(members)) == ["a", *(f"sub/{name}" for name in names)]
    with pytest.raises(BadTar, match="is a directory; eStargz"):
        arrange([folder(".prefetch.landmark")])
    with pytest.raises(BadTar, match="is a directory; eStargz"):
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
    chain = [linked(f"l{number + 1}", f"l{number}") for number in range(20_000)]
    found = arrange([regular("l0"), *chain])
    assert set(links(found).values()) == {"l0"}
    flips = [make("d") for _ in range(10_000) for make in (folder, regular)]
    assert paths(arrange([regular(f"d/{number}") for number in range(10_000)] + flips)) == ["d"]
    deep = [regular("/".join(["d"] * depth) + "/f") for depth in range(1, 1000)]
    assert len(arrange(deep).members) == 999


def test_what_names_imply_and_where_symlinks_lead_is_bounded(monkeypatch: pytest.MonkeyPatch):
    deep = [regular(f"{number}" + "/d" * 2000 + "/f") for number in range(30)]
    with pytest.raises(BadTar, match="directories without an entry"):
        arrange(deep)
    chain = [soft("0", "d"), *(soft(f"{number}", f"{number - 1}") for number in range(1, 255))]
    assert paths(arrange([*chain, regular("254/x")]))[-1] == "d/x"
    with pytest.raises(BadTar, match="too many symlinks"):
        arrange([*chain, soft("255", "254"), regular("255/x")])
    monkeypatch.setattr("lazyfs.formats.tars.play.MAX_STEPS", 10_000)
    assert len(arrange([*chain, *(regular(f"254/{number}") for number in range(39))]).members) > 39
    with pytest.raises(BadTar, match="too many symlinks"):
        arrange([*chain, *(regular(f"254/{number}") for number in range(40))])
