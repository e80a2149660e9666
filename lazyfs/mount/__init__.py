"""How the kernel reaches the index and the contents; the only users of pyfuse3."""
