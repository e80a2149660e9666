"""Where bytes come from: how fast it is, and what is done while it cannot be reached."""
