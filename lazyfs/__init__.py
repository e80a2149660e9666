"""lazyfs: mount OCI images lazily, verified to the last byte."""

__version__ = "0.2.0"

CORE_INTERFACE = "1471f2d7e2cebe10"
"""What the native core must have been compiled for: see ``_native.pyi``."""
