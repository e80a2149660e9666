"""What a container is started with, and what it may not do."""
