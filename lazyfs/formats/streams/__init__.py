"""Compressed streams: inflated, entered in the middle, bounded."""
