"""Maps of files that may become shorter meanwhile: what is lost of them reads as zeros.

Without the native core such a map ends the process (SIGBUS) when somebody cuts its file.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

try:
    from lazyfs._native import guard, unguard
except ImportError:  # it was installed without a compiler

    def guard(mapped: "Buffer", /) -> None:
        """Do nothing."""

    def unguard(mapped: "Buffer", /) -> None:
        """Do nothing."""


__all__ = ["guard", "unguard"]
