"""Real images for measuring: from Debian packages, and large or numerous made-up files."""
