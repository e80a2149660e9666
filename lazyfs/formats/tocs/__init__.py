"""The table of contents that every layer format becomes."""
