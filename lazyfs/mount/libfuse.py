"""``pyfuse3``, imported without the search for its version.

It asks ``importlib.metadata`` for that, which imports email, csv and zipfile and reads what all
packages are called: 12 ms of a mount, nearly all that importing pyfuse3 takes.
"""

import sys
from types import ModuleType
from typing import NoReturn

METADATA = "importlib.metadata"


def _stand_in() -> ModuleType:
    """Return a module that knows of no package, which pyfuse3 is prepared for."""

    def version(name: str) -> NoReturn:
        raise ImportError(name)

    module = ModuleType(METADATA)
    module.__dict__.update(version=version, PackageNotFoundError=ImportError)
    return module


_is_there = METADATA in sys.modules
if not _is_there:
    sys.modules[METADATA] = _stand_in()
try:
    import pyfuse3
finally:
    if not _is_there:
        del sys.modules[METADATA]

__all__ = ["pyfuse3"]
