"""Templates, lock files, manifests, journals and records as values, with their rules."""
