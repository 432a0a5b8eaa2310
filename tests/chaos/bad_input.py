"""Bad input: schemathesis sends whatever the OpenAPI document allows, and whatever it does not."""

import asyncio
import collections
import json
import os
import sys
from pathlib import Path
from typing import Any

from figures import Figure, exactly, told
from place import place

HERE = Path(__file__).parent
KEY = "fuzz"
LIMITS: dict[str, Any] = {
    "max_samples": 64,
    "max_steps": 16,
    "max_queued_candidates": 4000,
    "max_wait_seconds": 0.2,
}
ALWAYS = 500  # cases at least, however few examples are asked for: the edges of every field
PER_EXAMPLE = 12  # cases at least: of each operation one, and sequences
SURPRISING = 1000  # cases from which on every run makes its own; a short look is always the same
MOST_SECONDS = 900


async def bad_input(rounds: int) -> list[Figure]:
    """At least so many requests, alone and as sequences; all are in the folder's log if one is answered badly."""
    name = "bad-input"
    async with place(**LIMITS) as here:
        here.keys(KEY)
        await here.workers(1, slots=64, step_seconds=0.002)
        api = await here.api()
        report = here.folder / "report.json"
        command = [
            *(str(Path(sys.executable).with_name("st")), "--config-file", str(HERE / "bad-input.toml")),
            *("run", f"{api.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
            *("--max-examples", str(max(10, (rounds - ALWAYS) // PER_EXAMPLE)), "--no-color"),
            *("--report", "json", "--report-json-path", str(report)),
        ]
        if rounds < SURPRISING:
            command += ["--seed", "1"]
        environment = {**os.environ, "PYTHONPATH": str(HERE), "SCHEMATHESIS_HOOKS": "bad_input_hooks"}
        environment.pop("PYTHONSAFEPATH", None)
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=here.folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), MOST_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            print(said.decode())  # noqa: T201
        found: dict[str, Any] = (
            json.loads(report.read_text()) if report.is_file() else {"test_cases": {}, "failures": [], "errors": [1]}
        )
        statuses = collections.Counter(line["status"] for line in api.requests())
        mistakes = sum(count for status, count in statuses.items() if status >= 500 and status not in (503, 504))
        cases = found["test_cases"].get("generated", 0)
        return [
            Figure(name, "cases, by schema and against it", f"at least {rounds}", str(cases), cases >= rounds),
            exactly(name, "kinds of answers that break the description", 0, len(found["failures"])),
            exactly(name, "checks that could not be made", 0, len(found["errors"]) + (not cases)),
            exactly(name, "answers of 5xx, but for a full queue and a time that is over", 0, mistakes),
            told(name, "answers by status", ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))),
        ]
