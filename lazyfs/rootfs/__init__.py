"""Tables of contents to one rootfs index, and reading it; bytes in, values or errors out."""
