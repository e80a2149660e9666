"""What starts the servers of mounts, keeps them, and hands them over."""
