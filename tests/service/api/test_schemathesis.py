"""The API against its own description: requests that it allows and requests that it does not, in short."""

import subprocess
import sys
from pathlib import Path

CHAOS = Path(__file__).parents[2] / "chaos" / "run.py"


def test_api_answers_any_request_as_its_schema_says(tmp_path: Path) -> None:
    """At least 500 requests by schemathesis, alone and in sequences; `make chaos` sends 10,000."""
    command = [sys.executable, "-P", str(CHAOS), "bad-input", "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
