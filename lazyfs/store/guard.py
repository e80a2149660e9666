"""Maps of files that may become shorter meanwhile: what is lost of them reads as zeros.

Without the native core such a map ends the process (SIGBUS) when somebody cuts its file.
"""

import mmap

try:
    from lazyfs._native import guard, unguard
except ImportError:  # it was installed without a compiler

    def guard(mapped: mmap.mmap, /) -> None:
        """Do nothing."""

    def unguard(mapped: mmap.mmap, /) -> None:
        """Do nothing."""


__all__ = ["guard", "unguard"]
