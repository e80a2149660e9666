"""What is fetched before anyone reads it."""
