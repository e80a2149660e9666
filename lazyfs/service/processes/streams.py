"""The standard streams of a process that is about to open descriptors, or to fork."""

import os
import sys


def open_standard_streams() -> None:
    """Fill closed standard streams, so that no descriptor of ours lands on their numbers.

    What is buffered in the others is written, so that a fork does not write it twice.
    """
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, stream in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:  # Python's way with a stream that was closed
            setattr(sys, name, os.fdopen(stream, "w", closefd=False))
        getattr(sys, name).flush()
