"""lazyfs: mount OCI images lazily, verified to the last byte."""

__version__ = "0.2.0"

CORE_INTERFACE = "ad0fdcb25f9aa40a"
"""What the native core must have been compiled for: see ``_native.pyi``."""
