"""``python -m lazyfs``: the same as the ``lazyfs`` command."""

from lazyfs.cli.main import main

main()
