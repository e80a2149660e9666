"""What `make bench` runs: lazy mounts against pull and unpack, in one table."""
