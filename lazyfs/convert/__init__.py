"""Images made lazy, and indexes beside images."""
