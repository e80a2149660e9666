"""Where snapshots are kept, and what each store must promise."""
