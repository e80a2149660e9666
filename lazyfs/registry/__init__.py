"""Where images come from: registries over HTTP, and image layouts on disk."""
