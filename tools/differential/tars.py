"""Images of structured, odd and hostile tars, the same for the same seed."""

import random

import msgspec

from tools.differential.headers import (
    Header,
    Record,
    built,
    extended,
    long_name,
    padded,
    record,
)
from tools.differential.sparse import sparse_member

NAMES = [b"a", b"b", b"c", b"l", b"lib", b"d", b"usr", b"e"]
TARGETS = [
    *(b"a", b"d", b"usr", b"usr/lib", b"/usr/lib", b"../d", b"../../d", b".", b"/", b"d/e/../b"),
    *(b"l", b"./lib/", b"nowhere", b"/etc/passwd", b"d//e", b"../usr/./lib"),
]
FILES = [b"0", b"0", b"0", b"0", b"\0"]
DATA = [0, 1, 3, 511, 512, 513, 1500, 4097, 9000]
XATTRS = [b"user.a", b"user.b", b"security.x", b"trusted.x", b"odd.x"]
TIMES = [b"1", b"1.5", b"-1", b"-0.25", b"1600000000.123456789", b"1.0000000009", b"007.", b"+5"]


class Image(msgspec.Struct, frozen=True):
    """Layers of an image, bottom first."""

    layers: tuple[bytes, ...]


def make_image(seed: int) -> Image:
    """Return the image of *seed*."""
    rng = random.Random(seed)
    count = rng.choice([1, 1, 1, 1, 1, 2, 2, 3])
    return Image(tuple(_Maker(rng, number).make() for number in range(count)))


class _Maker:
    def __init__(self, rng: random.Random, layer: int) -> None:
        self._rng = rng
        self._layer = layer
        self._out: list[bytes] = []
        self._files: list[bytes] = []
        self._folders: list[bytes] = [b""]
        self._taken: set[bytes] = set()
        self._said: dict[bytes, tuple[Header, list[Record]]] = {}
        self._is_odd = rng.random() < 0.3  # the others have what every unpacker takes

    def make(self) -> bytes:
        for _ in range(self._rng.randint(0, 9)):
            self._add()
        return self._end(b"".join(self._out))

    # Members

    def _add(self) -> None:
        kind = self._rng.choices(
            [
                self._file,
                self._directory,
                self._symlink,
                self._hardlink,
                self._device,
                self._sparse,
                self._whiteout,
                self._global,
                self._nonsense,
            ],
            [30, 18, 12, 12, 4, 6, 8, 1, 2 if self._is_odd else 0],
        )[0]
        kind()

    def _path(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.9:  # where there is a directory, and no such name
            for _ in range(5):
                path = rng.choice(self._folders) + rng.choice(NAMES)
                if path not in self._taken:
                    break
        else:
            path = b"/".join(rng.choice(NAMES) for _ in range(rng.choice([1, 1, 1, 2, 2, 3])))
        self._taken.add(path)
        if rng.random() < 0.06:
            path += b"/" + rng.choice([b"n" * 90, b"n" * 120, b"\xc3\xa9", b"\xff\xe9", b"x y"])
        if rng.random() < 0.1:
            path = rng.choice([b"./%s", b"/%s", b".//%s", b"../%s", b"a/../%s", b"%s/."]) % path
        if self._is_odd and rng.random() < 0.03:
            path = rng.choice(
                [
                    b"",
                    b".",
                    b"/",
                    b"..",
                    b"n" * 256,
                    b"d/" * 300,
                    b"/".join([b"m" * 250] * 17),
                    b".wh.x/y",
                ]
            )
        return path

    def _file(self) -> None:
        path = self._path()
        self._files.append(path)
        data = self._rng.randbytes(self._rng.choice(DATA))
        self._member(Header(path, self._rng.choice(FILES), len(data)), data)

    def _directory(self) -> None:
        path = self._path()
        self._folders.append(path + b"/")
        flag = b"5"
        if self._rng.random() < 0.6:
            path += b"/"
            flag = self._rng.choice([b"5", b"5", b"\0"])
        mode = self._rng.choice([0o755, 0o700, 0o1777, 0o2755])
        size = 1 if self._rng.random() < 0.05 else 0
        self._member(Header(path, flag, size, mode))

    def _symlink(self) -> None:
        path, link = self._path(), self._rng.choice(TARGETS)
        if self._rng.random() < 0.5:
            self._folders.append(path + b"/")
        self._member(Header(path, b"2", mode=0o777, link=link))

    def _hardlink(self) -> None:
        rng = self._rng
        if not self._files and rng.random() < 0.98:
            self._file()
            return
        link = rng.choice(self._files) if self._files else b"nothing"
        if rng.random() < 0.03:
            link = self._path()
        if rng.random() < 0.1:
            link = b"./" + link
        size = rng.choice([0, 0, 0, 100])
        self._member(Header(self._path(), b"1", size, link=link))

    def _device(self) -> None:
        rng = self._rng
        numbers = rng.choice([(1, 3), (4095, 7), (8, 70_000), (0, 0), (1, 1_048_575)])
        if self._is_odd and rng.random() < 0.2:
            numbers = rng.choice([(4096, 1), (-1, 1), (2**20, 1)])
        self._member(Header(self._path(), rng.choice([b"3", b"4", b"6"]), device=numbers))

    def _sparse(self) -> None:
        path = self._path()
        self._files.append(path)
        self._said[path] = Header(path, mode=0o640), []
        self._out.append(sparse_member(self._rng, path, is_odd=self._is_odd))

    def _whiteout(self) -> None:
        rng = self._rng
        if not self._layer and rng.random() < 0.9:
            self._file()
            return
        above, slash, name = self._path().rpartition(b"/")
        name = b".wh." + name
        if rng.random() < 0.3:
            name = b".wh..wh..opq"
        elif rng.random() < 0.05:
            name = b".wh..wh.plnk"
        elif self._is_odd and rng.random() < 0.05:
            name = rng.choice([b".wh.", b".wh..", b".wh..."])
        flag = rng.choice([b"0", b"0", b"0", b"1", b"2", b"3", b"5", b"6"])
        link = rng.choice([b"nowhere", b".wh..wh.aufs"]) if flag in b"12" else b""
        self._member(Header(above + slash + name, flag, link=link))

    def _global(self) -> None:
        records = [(b"path", b"no"), (b"uid", b"9"), (b"comment", b"c")]
        name = self._rng.choice([b"pax_global", b"pax_global", b"tmp/globals/1"])
        self._out.append(extended(records[: self._rng.randint(0, 3)], flag=b"g", name=name))

    def _nonsense(self) -> None:
        rng = self._rng
        flag = rng.choice([b"7", b"X", b"V", b"M", b"D", b"N", b"A", b"\xff", b"9"])
        self._member(Header(self._path(), flag, 3), b"abc")

    # Headers

    def _member(self, header: Header, data: bytes = b"") -> None:
        rng = self._rng
        header.dialect = rng.choice(["ustar", "ustar", "gnu", "gnu", "v7", "star"])
        if header.dialect == "v7" and header.device is not None:
            header.dialect = "ustar"
        header.uid, header.gid = rng.choice([0, 0, 1000, 2**21, 65534]), rng.choice([0, 50])
        header.mtime = rng.choice([0, 1, 1_500_000_000, 2**33])
        if header.flag in b"0\0":
            header.mode = rng.choice([0o644, 0o755, 0o4755, 0o600, 0o100644])
        if header.device is None and rng.random() < 0.05:
            header.device = (8, 2_097_151)  # whatever stood there: only of devices it counts
        if self._is_odd:
            self._bend(header)
        extra = [self._record() for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 2, 3]))]
        if header.flag in b"0\0":
            self._said[header.name] = msgspec.structs.replace(header), extra
        elif header.flag == b"1":
            extra = self._like_file(header)
        before, records = self._spell(header, data)
        self._put_extended(before, records + extra)
        self._out.append(built(header, rng if rng.random() < 0.3 else None))
        self._out.append(padded(data))

    def _like_file(self, link: Header) -> list[Record]:
        """Have a hardlink say what its file says; nearly always."""
        said = self._said.get(link.link)
        if said is None or self._rng.random() < 0.02:
            return []
        file, records = said
        link.mode, link.uid, link.gid, link.mtime = file.mode, file.uid, file.gid, file.mtime
        return [*dict(each for each in records if each[0] != b"GNU.sparse.name").items()]

    def _bend(self, header: Header) -> None:
        rng = self._rng
        if rng.random() < 0.08:
            header.uid = rng.choice([-1, -2, 2**31, 2**32 - 2, 2**32, 2**32 + 5])
        if rng.random() < 0.05:
            header.mtime = rng.choice([-1, -(2**40), 2**62, 10**10])
        if rng.random() < 0.05:
            header.mode = rng.choice([-1, 0o7777, 0o40755, 2**40])
        if rng.random() < 0.03:
            header.size = rng.choice([-1, 2**40, header.size + 1])
        if rng.random() < 0.03 and header.dialect == "gnu":
            header.tail = rng.choice([b"old/go/prefix", b"\xff\xfe", b"p" * 155, b"00000000001\0"])

    def _spell(self, header: Header, data: bytes) -> tuple[list[bytes], list[Record]]:
        """Put names where there is room for them; return headers before this one, and records."""
        rng = self._rng
        before: list[bytes] = []
        records: list[Record] = []
        if len(header.name) > 100 or rng.random() < 0.1:
            way = rng.choice(["pax", "gnu", "prefix"])
            above, slash, name = header.name.rpartition(b"/")
            if way == "prefix" and slash and header.dialect == "ustar" and len(name) <= 100:
                header.prefix, header.name = above[:155], name
            elif way == "gnu":
                before.append(long_name(b"L", header.name))
                header.name = rng.choice([header.name, b"short"])
            else:
                records.append((b"path", header.name))
                header.name = rng.choice([header.name, b"short"])
        if header.link and (len(header.link) > 100 or rng.random() < 0.1):
            if rng.random() < 0.5:
                before.append(long_name(b"K", header.link))
            else:
                records.append((b"linkpath", header.link))
            header.link = b"short"
        if rng.random() < 0.05 and header.flag in b"0\0":
            records.append((b"size", rng.choice([b"%d", b"%020d", b"+%d"]) % header.size))
        return before, records

    def _put_extended(self, before: list[bytes], records: list[Record]) -> None:
        rng = self._rng
        rng.shuffle(records)
        headers = [*before]
        if records or rng.random() < 0.03:
            headers.append(extended(records))
        if self._is_odd and rng.random() < 0.06:
            more = [self._record() for _ in range(rng.randint(0, 2))]
            headers.append(extended(more))
        if self._is_odd and rng.random() < 0.02:
            headers.append(extended([(b"comment", b"g")], flag=b"g"))
        if self._is_odd and rng.random() < 0.03:
            headers.append(self._bad_extended())
        rng.shuffle(headers)
        self._out += headers

    def _record(self) -> Record:
        rng = self._rng
        keys: list[Record] = [
            (b"SCHILY.xattr." + rng.choice(XATTRS), rng.randbytes(rng.choice([0, 1, 20]))),
            (b"SCHILY.xattr." + rng.choice(XATTRS), rng.randbytes(9)),
            (b"mtime", rng.choice(TIMES)),
            (b"uid", rng.choice([b"7", b"07", b"3000000000", b""])),
            (b"gid", rng.choice([b"8", b"", b"+9"])),
            (b"comment", rng.choice([b"c", b"", b"=="])),
            (b"uname", b"user"),
            (b"LIBARCHIVE.creationtime", b"1"),
            (b"atime", b"5"),
            (b"hdrcharset", b"BINARY"),
            (b"path", b""),
            (b"GNU.sparse.name", b"not this"),
        ]
        if self._is_odd and rng.random() < 0.2:
            keys = [
                (b"mtime", rng.choice([b"soon", b"1e5", b".5", b"1.x", b"9" * 19, b"9" * 20])),
                (b"uid", rng.choice([b"-1", b"-2", b"4294967296", b"x", b"1_0"])),
                (b"size", rng.choice([b"-1", b"5", b"0x1", b"9" * 30])),
                (b"atime", b"soon"),
                (b"path", rng.choice([b"nul\0", b"p" * 300, b"d/", b"/"])),
                (b"SCHILY.xattr.", b"x"),
                (b"k\0", b"v"),
                (b"GNU.sparse.major", b"2"),
            ]
        return rng.choice(keys)

    def _bad_extended(self) -> bytes:
        content = self._rng.choice(
            [b"x", b"4 a=\n", b"99 a=b\n", b"6 a=b", b"5 a\n", b"6 =ab\n", b"07 a=b\n", b"-6 a=b\n"]
        )
        content += record(b"comment", b"more")
        return built(Header(b"pax", b"x", len(content))) + padded(content)

    def _end(self, tar: bytes) -> bytes:
        rng = self._rng
        ends = [bytes(1024), bytes(10240)]
        if rng.random() < 0.2:
            ends = [b"", bytes(512), bytes(1024) + b"junk", bytes(1024) + tar]
        if not self._is_odd or rng.random() < 0.8:
            return tar + rng.choice(ends)
        odd = [
            tar.rstrip(b"\0"),
            tar[: rng.randint(0, len(tar))],
            tar + bytes(512) + tar,
            tar + extended([(b"path", b"nothing")]) + bytes(1024),
            tar + extended([(b"path", b"nothing")]).rstrip(b"\0"),
            tar + bytes(700),
            bytes(rng.choice(tar) if rng.random() < 0.002 else byte for byte in tar),
        ]
        return rng.choice(odd)
