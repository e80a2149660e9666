"""Where images come from: registries over HTTP, and image layouts on disk."""

import sys

# httpx imports its own command line when it finds click and rich, which we have for ours: 30 ms of
# every mount for what nobody calls.  It does without when that module cannot be imported.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
