"""Sandboxes on this machine: their state, their images, how they begin."""
