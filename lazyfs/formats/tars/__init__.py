"""Tars, read and written, and compared with tables of contents."""
