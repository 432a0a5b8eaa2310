"""One project of docker-compose.yml on the daemon, as an operator's machine has it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from daemon import ROOT, Engine, Failed

WAIT_SECONDS = 240.0
JOB = ["a photo of a red circle", "--steps", "4", "--seed", "7", "--json"]
CLIENT = [sys.executable, "-P", "-m", "bestofn.cli"]


class Host:
    """A compose project with its own .env.

    Args:
        engine: the daemon.
        name: of the project.
        variables: what .env holds.
        files: compose files, ours by default.
        folder: the checkout.
    """

    def __init__(
        self, engine: Engine, name: str, variables: dict[str, str], files: Sequence[str] = (), folder: Path = ROOT
    ) -> None:
        self.engine = engine
        self.name = name
        self.variables = {"BESTOFN_PORT": "18000", "BESTOFN_QUEUE_PORT": "16380", **variables}
        self.folder = folder
        chosen = files or ("docker-compose.yml",)
        self._start = ["docker", "compose", "--project-name", name]
        self._start += [part for file in chosen for part in ("--file", str(folder / file))]
        self.address = f"http://127.0.0.1:{self.variables['BESTOFN_PORT']}"
        self.key: str | None = None

    def compose(self, *arguments: str) -> str:
        return self.engine.run(*self._start, *arguments, folder=self.folder, more=self.variables)

    def containers(self, service: str) -> list[str]:
        """The ids of the service's containers, those that ended too."""
        return self.compose("ps", "--all", "--quiet", service).split()

    def state(self, container: str) -> dict[str, Any]:
        return dict(self.engine.inspect(container)["State"])

    def kernel(self, container: str) -> dict[str, str]:
        """What the kernel says of the service's own process, which the container's init started."""
        pid = self.state(container)["Pid"]
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[:1]
        lines = Path(f"/proc/{child}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def kill(self, container: str) -> None:
        """SIGKILL from outside, as the kernel ends a process: `docker kill` would count as a wish to stop it."""
        os.kill(self.state(container)["Pid"], signal.SIGKILL)

    def get(self, path: str) -> Any:
        """The JSON at a path of the API, asked in the daemon's network."""
        return json.loads(self.engine.run(*fetch(f"{self.address}{path}", self.key)))

    def generate(self, samples: int) -> "Job":
        """Starts a job, as a caller on the API's host would."""
        environment = {**os.environ, **({} if self.key is None else {"BESTOFN_API_KEY": self.key})}
        command = [*self.engine.enter, *CLIENT, "generate", *JOB, "-n", str(samples), "--server", self.address]
        return Job(command, environment)

    def wait_for(self, what: str, holds: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if holds():
                    return
            except Failed as error:
                last: object = error
            else:
                last = "it does not hold"
            if time.monotonic() > deadline:
                raise Failed(f"not after {seconds:.0f} s: {what}: {last}")
            time.sleep(0.5)

    def workers(self) -> int:
        return len(self.get("/status")["workers"])

    def started(self) -> bool:
        """Whether a worker has work."""
        return bool(self.get("/status")["queue"]["running"])

    def keys(self) -> int:
        """How many keys Redis holds."""
        user, _, password = self.variables.get("TEST_QUEUE_USER", "").partition(":")
        access = ["--user", user, "--pass", password, "--no-auth-warning"] if user else []
        return int(self.compose("exec", "-T", "redis", "redis-cli", *access, "dbsize").split()[-1])

    def remove(self) -> None:
        """Containers, networks and volumes."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "5")


class Job:
    """`bestofn generate` in a process of its own."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [*command, "-o", f"{self._folder.name}/best.png"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def result(self) -> dict[str, Any]:
        out, err = self._process.communicate(timeout=WAIT_SECONDS)
        self._folder.cleanup()
        if self._process.returncode:
            raise Failed(f"generate ended with {self._process.returncode}: {err}")
        return dict(json.loads(out))


def fetch(address: str, key: str | None = None) -> list[str]:
    """A command that prints what an address answers."""
    program = (
        "import sys, urllib.request as u; "
        "headers = {'Authorization': 'Bearer ' + sys.argv[2]} if sys.argv[2:] else {}; "
        "print(u.urlopen(u.Request(sys.argv[1], headers=headers), timeout=10).read().decode())"
    )
    return [sys.executable, "-c", program, address, *([] if key is None else [key])]


def outcome(result: dict[str, Any]) -> tuple[int, list[tuple[int, float]]]:
    """The winner, and the verdict on each candidate: what a job's result says, whichever workers drew it."""
    verdicts = sorted((one["index"], round(one["verdict"]["p_yes"], 3)) for one in result["candidates"])
    return result["images"][0]["candidate"], verdicts
