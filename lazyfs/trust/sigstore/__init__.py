"""Signatures of cosign, judged by the policies of podman and skopeo.  Pure."""
