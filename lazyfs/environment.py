"""What the environment may decide: which programs are started, and from where code is loaded.

Root may run lazyfs with the environment of somebody else (``sudo -E``, ``su``, ``mount -t
fuse.lazyfs``), and anybody in a directory that somebody else can write to.  So programs are looked
for in directories with absolute names only, and an interpreter that lazyfs starts loads what this
one would, whatever variables and working directory say.  Imports nothing: every command begins
with it.
"""

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What the interpreter is told to run: sys.path as ours is, then the module as ``python -m`` does.
BEGIN = (
    "import sys; count = int(sys.argv[1]); sys.path[:0] = sys.argv[2:2 + count]; "
    "name = sys.argv[2 + count]; del sys.argv[1:3 + count]; "
    "import runpy; runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def absolute_elements(path: str) -> str:
    """Return a search path without its empty and relative elements: those mean, or lie in, the
    working directory."""
    return ":".join([each for each in path.split(":") if each.startswith("/")])


def harden(environment: "MutableMapping[str, str]") -> None:
    """Have programs found in directories with absolute names only, here and in all children."""
    path = environment.get("PATH")
    if path is not None:
        environment["PATH"] = absolute_elements(path) or DEFAULT_PATH


def of_interpreter(environment: "Mapping[str, str]") -> dict[str, str]:
    """Return *environment* without what would change what a Python interpreter runs."""
    return {name: text for name, text in environment.items() if not name.startswith("PYTHON")}


def python_command(
    executable: str, path: "Iterable[str]", module: str, *, has_user_site: bool | None
) -> list[str]:
    """Return the words that run *module* in an interpreter of its own; arguments may follow.

    *path* is this interpreter's ``sys.path``: code comes from there, in that order, and from
    nowhere else; relative elements are left out.  The packages of the user count
    where *has_user_site*, ``site.ENABLE_USER_SITE`` here, says so.
    """
    folders = [folder for folder in path if folder.startswith("/")]
    flags = ["-E", "-P"] if has_user_site else ["-I"]
    return [executable, *flags, "-c", BEGIN, str(len(folders)), *folders, module]
