"""Play the members of a tar in their order, as containerd's archive.Apply does on an empty root.

Spec: OCI image-spec, layer.md, "Applying Changesets"; containerd pkg/archive/tar.go; its
fs.RootPath for symlinks.  Each layer is unpacked into a directory of its own, as the snapshotter
for overlayfs does it: a symlink of a lower layer is not seen, and a whiteout removes nothing here.

A *file* below is the position of the member that made it; hardlinks share it.
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from lazyfs.formats.streams.limits import DEFAULT_LIMITS
from lazyfs.formats.tars.tar_member import BadTar, TarMember
from lazyfs.formats.tocs.paths import WHITEOUT_PREFIX, is_bare_whiteout, is_below_whiteout
from lazyfs.formats.tocs.toc import Kind

MAX_LINKS = 255  # on the way to one directory, as in continuity's fs.RootPath
MAX_STEPS = 1 << 22  # through symlinks, in all of a layer: each costs a walk from the root
IMPLIED_COST = 64  # bytes that a directory needs, beyond its path
IMPLIED = -1


def play(members: Sequence[TarMember]) -> Mapping[bytes, TarMember]:
    """Return what has a name at the end, by its path, in the order of the last member of a name.

    Paths have no symlinks on the way, hardlinks name their file, and files that have lost all but
    a hardlink's name stand there.  Raises BadTar for what cannot be done.
    """
    return _Play(members).run()


class _Play:
    def __init__(self, members: Sequence[TarMember]) -> None:
        self._members = members
        self._current: dict[bytes, int] = {}  # name → position of the member that gave it
        self._directories: dict[bytes, int] = {b"": IMPLIED}  # … that made it explicit
        self._file_of: dict[int, int] = {}  # position of a hardlink → file
        self._moved: dict[int, bytes] = {}  # position → path, where it is not the member's own
        self._whiteouts: dict[int, TarMember] = {}  # position → member, made a file
        # The names in each directory; made when one is removed first, and kept from then on.
        self._below: dict[bytes, set[bytes]] | None = None
        self._steps = 0
        self._implied_size = 0

    def run(self) -> Mapping[bytes, TarMember]:
        directories = self._directories
        for position, member in enumerate(self._members):
            path = member.path
            parent = path.rpartition(b"/")[0]
            if not path:
                if member.kind is Kind.DIRECTORY:
                    self._current[path] = directories[path] = position
                continue
            if parent not in directories:
                if is_below_whiteout(path):
                    continue
                real = self._enter(parent, path)
                if real != parent:
                    name = path[len(parent) + 1 :] if parent else path
                    path = self._moved[position] = real + b"/" + name if real else name
            if WHITEOUT_PREFIX in path and self._note_whiteout(position, member, path):
                continue
            if member.kind is Kind.DIRECTORY:
                self._make_directory(position, member, path)
            else:
                self._make_file(position, member, path)
        return self._survivors()

    def _make_directory(self, position: int, member: TarMember, path: bytes) -> None:
        before = self._directories.get(path)
        if before is None:
            self._remove(path)
        self._add(path, position)
        self._directories[path] = position

    def _make_file(self, position: int, member: TarMember, path: bytes) -> None:
        if member.kind is Kind.HARDLINK:
            target = self._target(member.link)
            if target == path and path in self._current and path not in self._directories:
                return  # as tar writes for a file that it is given twice
            self._remove(path)
            target = self._target(member.link)  # which may have led through what was there
            position_of_target = self._current.get(target)
            if (
                position_of_target is None
                or target in self._directories
                or target.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX)
            ):
                raise self._no_target(member)
            self._file_of[position] = self._file(position_of_target)
        else:
            self._remove(path)
        self._add(path, position)

    def _target(self, link: bytes) -> bytes:
        """Return where a hardlink's file is, with the symlinks on the way to it followed."""
        parent = link.rpartition(b"/")[0]
        if parent in self._directories:  # and so without symlinks
            return link
        real = self._resolve(parent, link)
        name = link[len(parent) + 1 :] if parent else link
        return real + b"/" + name if real else name

    def _no_target(self, member: TarMember) -> BadTar:
        if member.link in self._directories:
            return BadTar(f"{member.path!r} is a hard link to a directory, {member.link!r}")
        return BadTar(
            f"{member.path!r} is a hard link to {member.link!r}, which is not a file before it in"
            " the layer"
        )

    def _note_whiteout(self, position: int, member: TarMember, path: bytes) -> bool:
        """Return whether *path* says something instead of being there, and take note of it."""
        if is_below_whiteout(path):
            return True
        name = path.rpartition(b"/")[2]
        if not name.startswith(WHITEOUT_PREFIX):
            return False
        if is_bare_whiteout(name):
            raise BadTar(f"{member.path!r} is a whiteout that names nothing")
        if member.kind in (Kind.HARDLINK, Kind.CHAR, Kind.BLOCK):
            # To whatever, and of whatever numbers: no reader need look at them.
            self._whiteouts[position] = replace(
                member, kind=Kind.REGULAR, link=b"", dev_major=0, dev_minor=0
            )
        self._current.pop(path, None)
        self._add(path, position)
        return True

    def _add(self, path: bytes, position: int) -> None:
        self._current[path] = position
        if self._below is not None:
            parent, _, name = path.rpartition(b"/")
            self._below.setdefault(parent, set()).add(name)

    def _file(self, position: int) -> int:
        return self._file_of.get(position, position)

    def _member(self, position: int) -> TarMember:
        return self._whiteouts.get(position) or self._members[position]

    # Directories

    def _enter(self, path: bytes, member: bytes) -> bytes:
        """Return the directory that *path* leads to, made with all above it where they are not."""
        real = self._resolve(path, member)
        missing = []
        above = real
        while above not in self._directories:  # a path has at most 4095 bytes
            missing.append(above)
            above = above.rpartition(b"/")[0]
        for directory in reversed(missing):
            self._directories[directory] = IMPLIED
            self._implied_size += len(directory) + IMPLIED_COST
            if self._implied_size > DEFAULT_LIMITS.implied_size:
                raise BadTar(
                    "tar: directories without an entry of their own take more than"
                    f" {DEFAULT_LIMITS.implied_size} bytes"
                )
            if self._below is not None:
                parent, _, name = directory.rpartition(b"/")
                self._below.setdefault(parent, set()).add(name)
        return real

    def _resolve(self, path: bytes, member: bytes) -> bytes:
        """Return *path* with its symlinks followed inside the root; it need not be there."""
        links = 0
        names = path.split(b"/") if path else []
        real = b""
        number = 0
        is_relative = True
        while number < len(names):
            if names[number] == b"..":  # of a hardlink's target: up from where symlinks led
                real = real.rpartition(b"/")[0]
                number += 1
                continue
            step = real + b"/" + names[number] if real else names[number]
            number += 1
            position = None if step in self._directories else self._current.get(step)
            if position is None:
                real = step
                continue
            above = self._member(self._file(position))
            if above.kind is not Kind.SYMLINK:
                if names[number : number + 1] == [b".."]:
                    real = step  # nothing is looked up in it
                    continue
                raise BadTar(
                    f"{member!r} lies below {step!r}, which is not a directory"
                    f" ({above.kind.name.lower()})"
                )
            links += 1
            self._steps += 1
            if links > MAX_LINKS or self._steps > MAX_STEPS:
                raise BadTar(f"{member!r} lies below too many symlinks")
            rest = names[number:]
            is_absolute = above.link.startswith(b"/")
            target = above.link.split(b"/")
            if rest or not (is_absolute or (is_relative and not real)):
                # By the letter, like filepath.Join: also one step back from where it leads.
                target = [*([] if is_absolute else real.split(b"/")), *target, *rest[:1]]
                names = [*_clean(target), *rest[1:]]
            else:
                names = [name for name in target if name not in (b"", b".")]
            is_relative = is_relative and not rest and not is_absolute
            real, number = b"", 0
        return real

    # Removal

    def _remove(self, path: bytes) -> None:
        """Remove the name *path* and what is below it, if there is anything."""
        if path in self._directories:
            self._remove_directory(path)
        self._current.pop(path, None)

    def _remove_directory(self, path: bytes) -> None:
        below = self._names_below()
        pending = [path]
        while pending:
            path = pending.pop()
            self._current.pop(path, None)
            if self._directories.pop(path, None) is not None:
                pending += [path + b"/" + name for name in below.pop(path, ())]

    def _names_below(self) -> dict[bytes, set[bytes]]:
        if self._below is None:
            self._below = {}
            for path in (*self._directories, *self._current):
                if path:
                    parent, _, name = path.rpartition(b"/")
                    self._below.setdefault(parent, set()).add(name)
        return self._below

    # The end

    def _survivors(self) -> Mapping[bytes, TarMember]:
        heirs: dict[int, bytes] = {}
        survivors: dict[bytes, TarMember] = {}
        for path, position in self._current.items():
            file = self._file(position)
            if file == position:
                survivors[path] = self._named(position, path)
                continue
            home = self._moved.get(file) or self._members[file].path
            if self._current.get(home) == file:
                heirs[file] = home
            if file in heirs:
                link = self._named(position, path)
                survivors[path] = (
                    link if link.link == heirs[file] else replace(link, link=heirs[file])
                )
            else:
                heirs[file] = path
                survivors[path] = replace(self._member(file), path=path)
        return survivors

    def _named(self, position: int, path: bytes) -> TarMember:
        member = self._member(position)
        return member if member.path == path else replace(member, path=path)


def _clean(names: Sequence[bytes]) -> list[bytes]:
    """Return *names* without empty, ``.`` and ``..`` ones, by the letter, as path.Clean does."""
    cleaned: list[bytes] = []
    for name in names:
        if name == b"..":
            del cleaned[-1:]
        elif name not in (b"", b"."):
            cleaned.append(name)
    return cleaned
