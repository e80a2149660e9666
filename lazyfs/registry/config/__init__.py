"""How registries are reached: configuration, credentials, endpoints."""
