"""Errors that travel from the process that met them to the one that tells of them."""

from typing import Any

from lazyfs import errors
from lazyfs.errors import LazyfsError, MountFailed


class ServerBug(Exception):
    """The other process failed in a way that nobody meant; its log has the traceback."""


class ServerLost(MountFailed):
    """The server ended without saying why."""

    code = "E_SERVER_LOST"


def is_interrupt(error: BaseException) -> bool:
    """Say whether *error* is Ctrl-C, which nurseries wrap into groups."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_interrupt(member) for member in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


def document_of(error: BaseException) -> dict[str, Any]:
    """Return an error as it travels, in JSON's types: its family, and what it says."""
    if is_interrupt(error):
        return {"family": "KeyboardInterrupt"}
    if isinstance(error, LazyfsError):
        family = next(cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
        return {
            "family": family.__name__,
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
        }
    if isinstance(error, ServerBug):  # from a third process
        return {"family": None, "message": str(error)}
    return {"family": None, "message": f"{type(error).__name__}: {error}"}


def error_of(document: dict[str, Any]) -> BaseException:
    """Return the error that the other process met."""
    if document["family"] == "KeyboardInterrupt":
        return KeyboardInterrupt()
    if document["family"] is None:
        return ServerBug(document["message"])
    family: type[LazyfsError] = getattr(errors, document["family"])
    error = family(document["message"], hint=document["hint"])
    error.code = document["code"]
    return error
