"""Version of the installed bestofn package, and the commit that it was built from."""

import json
from importlib.metadata import distribution


def _commit() -> str | None:
    """12 digits of the commit in the package's metadata (PEP 610), which images and `pip install git+...` write."""
    origin = json.loads(distribution("bestofn").read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return None if commit is None else str(commit)[:12]


VERSION = distribution("bestofn").version
COMMIT = _commit()
