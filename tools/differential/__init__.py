"""Compare what lazyfs makes of tars with what containerd and other unpackers make of them.

``python -m tools.differential`` runs it; docs/reference/formats.md lists the differences that are
meant, and tests/interop/test_differential.py runs a sample.
"""
