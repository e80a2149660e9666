"""Everything that lazyfs keeps on disk."""
