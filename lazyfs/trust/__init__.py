"""Who vouches for a manifest: signatures and policies judged.  Pure: what is asked comes in."""
