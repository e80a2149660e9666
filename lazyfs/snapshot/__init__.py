"""Sandboxes and their snapshots: run, checkpoint, restore, on exactly the image they began with."""
