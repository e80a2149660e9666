"""Policies, trust stores and stored answers about revocation, read from directories, bounded."""
