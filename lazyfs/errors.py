"""The families of errors; concrete classes live beside the code that raises them.

    LazyfsError
    ├── UsageError            what the caller typed: reference, option, template   exit 2
    ├── NotFound              manifest, blob, tag, file                            exit 3
    ├── AccessDenied          401, 403                                             exit 4
    ├── Unavailable           connection, 429, 5xx                                 exit 5
    │   └── DeadlineExceeded  the same, because time ran out                       exit 5
    ├── VerificationFailed    bytes that do not have their digest                  exit 6
    ├── FormatError           bytes that break the rules of their format           exit 7
    ├── MountFailed           the kernel or fusermount3 refused                    exit 8
    └── StoreError            the local store: full disk, damaged file             exit 1

Exactly two tables translate them: ``mount/errnos.py`` (to errno) and ``EXIT_CODES`` below.  A
message is a plain sentence (docs/style.md); a hint stands on a line of its own.
"""


class LazyfsError(Exception):
    """Base of everything that lazyfs raises on purpose; never raised itself.

    ``code`` is the machine-readable name that JSON output carries; ``hint`` is one line of advice
    or None.
    """

    code = "E_ERROR"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        if type(self) is LazyfsError:
            raise TypeError("LazyfsError is a family: raise one of its members")
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(LazyfsError):
    """What the caller typed cannot be understood or does not fit together."""

    code = "E_USAGE"


class NotFound(LazyfsError):
    """What was asked for is not there."""

    code = "E_NOT_FOUND"


class AccessDenied(LazyfsError):
    """The registry refuses access, or requires credentials."""

    code = "E_ACCESS_DENIED"


class Unavailable(LazyfsError):
    """It may work later: connection trouble, 429, 5xx.

    ``is_away``: whoever was asked is away, throttles or stalls, and will answer again.
    """

    code = "E_UNAVAILABLE"
    is_away = False


class DeadlineExceeded(Unavailable):
    """It may work later: our own time limit ran out."""

    code = "E_DEADLINE"


class VerificationFailed(LazyfsError):
    """Bytes do not have the digest or the size that a verified parent states."""

    code = "E_VERIFICATION"


class FormatError(LazyfsError):
    """Bytes do not follow their format."""

    code = "E_FORMAT"


class MountFailed(LazyfsError):
    """The mount could not be made, or could not be undone."""

    code = "E_MOUNT"


class StoreError(LazyfsError):
    """The local store cannot be read or written."""

    code = "E_STORE"


# Documented in docs/reference/exit-codes.md.  Codes that are not listed there mean failure.
EXIT_CODES: tuple[tuple[type[LazyfsError], int], ...] = (
    (UsageError, 2),
    (NotFound, 3),
    (AccessDenied, 4),
    (Unavailable, 5),
    (VerificationFailed, 6),
    (FormatError, 7),
    (MountFailed, 8),
    (StoreError, 1),
)
"""What the command line ends with; the table for errno is ``mount/errnos.py``."""
