"""lazyfs: mount OCI images lazily, verified to the last byte."""

__version__ = "0.2.0"

CORE_INTERFACE = "6ca93b0336d09538"
"""What the native core must have been compiled for: see ``_native.pyi``."""
