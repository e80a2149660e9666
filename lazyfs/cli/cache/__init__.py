"""Commands about what is kept on this machine."""
