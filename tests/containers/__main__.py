"""Builds the images of docker/Dockerfile and runs docker-compose.yml's services from them, without Docker.

`make containers`. Needs root, buildah, debootstrap and util-linux; says so and ends with 0 where they are missing.
What it builds stays under out/containers, so that the next run is quick.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import images
from compose import ROOT, read
from images import API, SERVERS, WORK, WORKER
from sandbox import Container, Network

API_MEGABYTES = 300
WARM_SECONDS = 180.0
MODEL, JUDGE = "Efficient-Large-Model/SANA-test", "Efficient-Large-Model/NVILA-test"  # names on a hub of our own
STARTED = time.monotonic()
IMAGES = {"redis": SERVERS, "redis-tls": SERVERS, "api": API, "weights": API, "worker": WORKER, "worker-cpu": WORKER}
LIGHT = {"BESTOFN_THREADS": "1", "OMP_NUM_THREADS": "1"}


def say(text: str) -> None:
    sys.stdout.write(f"{time.monotonic() - STARTED:6.1f} s  {text}\n")
    sys.stdout.flush()


def check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    say(what)


class Host:
    """Containers that share a network; what they write is shown if something fails."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.network = Network()
        self.containers: dict[str, Container] = {}
        self._volumes = folder / "volumes"
        self._volumes.mkdir()
        self._variables = variables

    def start(self, name: str, extra: Mapping[str, str] | None = None, **variables: str) -> Container:
        image = IMAGES[name]
        service = read(name, images.configuration(image), {**self._variables, **variables}, extra or {})
        self.containers[name] = Container(service, image, self.network, self._volumes)
        return self.containers[name]

    def wait_for(self, what: str, holds: Callable[[], bool], seconds: float = WARM_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            for name, container in self.containers.items():
                if not container.running() and name != "weights":
                    raise SystemExit(f"FAILED: {name} ended before {what}")
            if time.monotonic() > deadline:
                raise SystemExit(f"FAILED: not {what} after {seconds:.0f} s")
            time.sleep(0.3)
        say(what)

    def close(self) -> None:
        for container in self.containers.values():
            container.remove()
        self.network.close()


@contextmanager
def host(variables: Mapping[str, str]) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="host-", dir=WORK))
    here = Host(folder, variables)
    try:
        yield here
    except BaseException:
        for name, container in here.containers.items():
            sys.stderr.write(f"--- {name}\n{container.log.read_text(errors='replace')[-3000:]}\n")
        raise
    finally:
        here.close()
        shutil.rmtree(folder)


def generate(here: Host, folder: Path, key: str | None = None) -> dict[str, object]:
    """One job by the command line, from outside of the containers, through the API's published address."""
    command = [sys.executable, "-P", "-m", "bestofn.cli", "generate", "a photo of a red circle", "-n", "4"]
    command += ["--steps", "4", "--seed", "7", "--server", "http://127.0.0.1:8000", "--json", "-o", folder / "best.png"]
    environment = {**os.environ, "BESTOFN_API_KEY": key} if key else dict(os.environ)
    done = subprocess.run(
        [*here.network.enter(), *command], capture_output=True, text=True, timeout=300, env=environment
    )
    if done.returncode:
        raise SystemExit(f"FAILED: generate ended with {done.returncode}: {done.stderr}")
    return dict(json.loads(done.stdout))


def status_with(here: Host, key: str) -> int:
    """The status that a call with this key gets, from outside of the containers."""
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {key}"]
    done = subprocess.run([*here.network.enter(), *command, "http://127.0.0.1:8000/status"], capture_output=True)
    return int(done.stdout)


def ready(api: Container) -> bool:
    look = "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz')"
    return api.run("python", "-c", look).returncode == 0


def status_of(container: Container) -> dict[str, str]:
    """What the kernel says of the service's process."""
    lines = Path(f"/proc/{container.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def check_confined(container: Container) -> None:
    """The service's own process, not only what runs beside it."""
    name, fields = container.service.name, status_of(container)
    user = fields["Uid"].split()[0]
    rights = {fields[field].strip() for field in ("CapEff", "CapPrm", "CapBnd")}
    check(user != "0" and rights == {"0" * 16} and fields["NoNewPrivs"] == "1", f"{name} runs as {user} without rights")
    told = container.run("sh", "-c", "id -u; echo x > /etc/written")
    check("Read-only file system" in told.stderr and user in told.stdout, f"{name} cannot write: {told.stderr.strip()}")


def one_machine() -> None:
    """The profile cpu, with nothing prepared."""
    say("--- COMPOSE_PROFILES=cpu")
    with host({}) as here, tempfile.TemporaryDirectory(dir=WORK) as folder:
        redis = here.start("redis")
        here.wait_for("redis is healthy", redis.healthy)
        api, worker = here.start("api"), here.start("worker-cpu", LIGHT)
        here.wait_for("the API is healthy", api.healthy)
        here.wait_for("the API is ready: a worker is warm", lambda: ready(api))
        here.wait_for("the worker is healthy", worker.healthy)
        for container in (redis, api, worker):
            check_confined(container)
        answer = generate(here, Path(folder))
        image = (Path(folder) / "best.png").read_bytes()
        check(image.startswith(b"\x89PNG"), f"a job is done: {answer['status']}, {len(image)} bytes of PNG")
        for container in (worker, api, redis):
            peak = int(status_of(container)["VmHWM"].split()[0]) / 1024
            status, seconds = container.stop()
            what = f"{container.service.name} took {peak:.0f} MiB at most, and ends {seconds:.1f} s after SIGTERM"
            check(status == 0, f"{what}, with {status}")


def several_hosts() -> None:
    """The profiles edge, hosts and gpu: secrets, TLS to the queue, weights from a hub, a worker without a network."""
    say("--- COMPOSE_PROFILES=edge,hosts and COMPOSE_PROFILES=gpu")
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        secrets = Path(folder) / "secrets"
        make = [ROOT / "docker" / "make-secrets", secrets, "localhost"]
        key = subprocess.run(make, check=True, capture_output=True, text=True).stdout.split()[-1]
        for secret in (secrets, secrets / "gpu-host"):
            secret.chmod(0o755)
        # There is no GPU here; all else is as on such a host.
        named = {"BESTOFN_MODEL": f"{MODEL}@main", "BESTOFN_JUDGE": f"{JUDGE}@main", "BESTOFN_DEVICES": "cpu"}
        named["BESTOFN_BIND"] = "192.0.2.1"
        gpu = {"BESTOFN_SECRETS": str(secrets / "gpu-host")}
        with host({"BESTOFN_SECRETS": str(secrets), **named}) as here:
            redis = here.start("redis")
            here.wait_for("redis is healthy", redis.healthy)
            api = here.start("api")
            here.start("redis-tls")
            here.wait_for("the API is healthy", api.healthy)
            check(redis.run("redis-cli", "info").stdout.startswith("NOPERM"), "redis needs a password")
            worker = here.start("worker", LIGHT, **gpu)
            waits = "waiting for weights"
            here.wait_for("the worker waits for its weights", lambda: waits in worker.log.read_text())
            with local_hub(here, Path(folder)) as address:
                weights = here.start("weights", {"HF_ENDPOINT": address}, **gpu)
                check(weights.wait(60.0) == 0, "the weights are downloaded")
            for line in weights.log.read_text().splitlines():
                if line and "Fetching" not in line:
                    say(f"  {line}")
            here.wait_for("the API is ready: the worker has come in by TLS", lambda: ready(api))
            check_confined(worker)
            tried = worker.run("sh", "-c", "echo x > /weights/written")
            check("Read-only file system" in tried.stderr, "the worker cannot write to the weights")
            answer = generate(here, Path(folder), key)
            check(answer["status"] == "succeeded", f"a job is done with a key and {answer['model']}")
            made = api.run("bestofn", "keys", "add", "alice", "--file", "-")
            keys = secrets / "api" / "keys"
            edited = keys.with_name("keys.edited")  # as editors and sed do
            edited.write_text(keys.read_text().replace("first ", "# first ") + made.stdout)
            edited.rename(keys)
            time.sleep(2)
            check(status_with(here, key) == 401, "a key is revoked while the API runs")
            check(status_with(here, made.stderr.split()[-1]) == 200, "one that the API's container made is good")
            worker.stop()


@contextmanager
def local_hub(here: Host, folder: Path) -> Iterator[str]:
    judge = folder / "judge"  # under the hub's revision its calibration does not hold, and workers refuse it
    shutil.copytree(ROOT / "judge" / "weights" / "shapes", judge, ignore=shutil.ignore_patterns("calibration.json"))
    program = [sys.executable, ROOT / "tests" / "hub.py", "9999"]
    served = [f"{MODEL}={ROOT}/models/weights/shapes", f"{JUDGE}={judge}"]
    process = subprocess.Popen([*here.network.enter(), *program, *served])
    try:
        yield "http://127.0.0.1:9999"
    finally:
        process.kill()
        process.wait()


def main() -> None:
    missing = [name for name in ("buildah", "debootstrap", "unshare", "nsenter") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        return say(f"skipped: {', '.join(missing)} not found" if missing else "skipped: needs root")
    WORK.mkdir(parents=True, exist_ok=True)
    images.make_base()
    images.make_servers()
    say("base images")
    for stage in images.STAGES:
        images.build(stage, f"localhost/bestofn-{stage}")
    say("packages")
    for target, image in (("api", API), ("worker", WORKER)):
        images.build(target, image)
        say(f"{target}: {images.megabytes(image):.0f} MB")
    images.prune()
    check(images.megabytes(API) < API_MEGABYTES, f"the API's image is below {API_MEGABYTES} MB")
    one_machine()
    several_hosts()
    say("all is well")


if __name__ == "__main__":
    main()
