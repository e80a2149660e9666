"""C sources as a graph: which file includes, or calls a function of, which other.

A file and the header of its name are one node.  No compiler is asked: what a function is shows in
the text, because definitions begin at the left and macros define none that others call.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

_NOISE = re.compile(
    r"""/\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'""", re.DOTALL | re.VERBOSE
)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)
_NAME = re.compile(r"(?<![\w.])(?<!->)[A-Za-z_]\w*")
_DEFINITION = re.compile(r"[{}]|([A-Za-z_]\w*)\s*\(")


def code_of(text: str) -> str:
    """Return a source without comments, literals and the preprocessor's lines."""
    return _DIRECTIVE.sub("", _NOISE.sub(" ", text))


def functions_in(code: str) -> tuple[set[str], set[str]]:
    """Return the functions that are defined in *code*: those that others can call, and the rest."""
    public: set[str] = set()
    own: set[str] = set()
    depth = place = begin = 0
    while found := _DEFINITION.search(code, place):
        place = found.end()
        if found[0] in "{}":
            depth += 1 if found[0] == "{" else -1
            begin = place
            continue
        if depth:
            continue
        place = _behind(code, place)
        if re.match(r"\s*\{", code[place : place + 100]):
            head = re.split(r"[;}]", code[begin : found.start()])[-1]
            (own if re.search(r"\bstatic\b", head) else public).add(found[1])
    return public, own


def _behind(code: str, place: int) -> int:
    """Return where the parenthesis that was opened before *place* has been closed."""
    depth = 1
    while depth and place < len(code):
        depth += {"(": 1, ")": -1}.get(code[place], 0)
        place += 1
    return place


def arrows_of(files: Iterable[Path], root: Path, folders: Sequence[Path]) -> dict[str, set[str]]:
    """Return node → the nodes that it includes or calls, among *files*.

    A node is the path below *root* without its suffix.  *folders* are where the compiler looks for
    includes, after the folder of the file itself.
    """
    texts = {path.resolve(): path.read_text() for path in files}
    codes = {path: code_of(text) for path, text in texts.items()}
    functions = {path: functions_in(code) for path, code in codes.items()}
    owners: dict[str, set[Path]] = defaultdict(set)
    for path, (public, _) in functions.items():
        for name in public if path.suffix == ".c" else ():
            owners[name].add(path)
    arrows: dict[str, set[str]] = {}
    for path, text in texts.items():
        targets = set()
        for name in _INCLUDE.findall(text):
            looked = [(folder / name).resolve() for folder in (path.parent, *folders)]
            targets |= set([each for each in looked if each in texts][:1])
        if path.suffix == ".c":
            public, own = functions[path]
            for name in set(_NAME.findall(codes[path])) & owners.keys() - own - public:
                targets |= owners[name]
        node = _node(path, root)
        arrows.setdefault(node, set()).update(_node(each, root) for each in targets)
        arrows[node].discard(node)
    return arrows


def _node(path: Path, root: Path) -> str:
    return path.relative_to(root.resolve()).with_suffix("").as_posix()


def circle_in(arrows: Mapping[str, set[str]]) -> list[str]:
    """Return the nodes of a circle, the first one twice; or nothing."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []
