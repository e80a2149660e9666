"""Commands about snapshots and their stores."""
