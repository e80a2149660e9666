"""Processes: the server of a mount, its control socket, the list of mounts."""
