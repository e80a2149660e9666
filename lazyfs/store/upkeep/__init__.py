"""What keeps the store small and right: budget, eviction, removal, checks."""
