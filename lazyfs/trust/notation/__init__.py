"""Signatures of the Notary Project: envelopes, certificate chains, time-stamps, trust policies."""
