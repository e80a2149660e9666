"""Starting another interpreter: it runs the code that this one runs, wherever it is started."""

import site
import sys
from pathlib import Path

import lazyfs
from lazyfs.environment import python_command

PACKAGES = str(Path(lazyfs.__file__).resolve().parent.parent)


def interpreter_command(module: str) -> list[str]:
    """Return the words that run *module*, one of ours, in a new interpreter.

    Neither the working directory nor a variable of Python's has a say in what it imports.
    """
    return python_command(
        sys.executable, [PACKAGES, *sys.path], module, has_user_site=site.ENABLE_USER_SITE
    )
