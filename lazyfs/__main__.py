"""``python -m lazyfs``: the same as the ``lazyfs`` command."""

from lazyfs.cli.start import main

main()
