"""lazyfs: mount OCI images lazily, verified to the last byte."""

__version__ = "0.2.0"
