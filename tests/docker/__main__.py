"""Runs docker-compose.yml on a Docker daemon: every profile that needs no GPU, faults, an upgrade. `make docker`.

Uses the daemon that is here. Without one it unpacks Debian's packages and starts its own in a network namespace. Needs
root. Images that cannot be pulled are made from Debian's packages. All it keeps is under out/docker. Prints a table.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import images
from daemon import ROOT, WORK, Engine, Failed, say
from host import Host, outcome

PROFILES = ("cpu", "edge,gpu", "edge,hosts", "gpu", "cpu,monitoring", "edge,gpu,hosts,monitoring")
SERVICES = ("redis", "api", "worker-cpu")
API_MEGABYTES = 300
SAMPLES = 256
MODEL, JUDGE = "Efficient-Large-Model/SANA-test", "Efficient-Large-Model/NVILA-test"  # names on a hub of our own
LIGHT = {"OMP_NUM_THREADS": "1", "BESTOFN_THREADS": "1"}
STARTED = time.monotonic()
RECEIVER = """
import http.server, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer((sys.argv[1], 9998), Receiver).serve_forever()
"""


class Run:
    """The daemon, what was seen so far, and the variables that name the images."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.rows: list[tuple[str, str, float]] = []
        self.variables: dict[str, str] = {}
        self.edge = ""  # an address of this machine that containers reach
        self.hosts: list[Host] = []

    @contextmanager
    def row(self, what: str) -> Iterator[list[str]]:
        """Times a step; the caller appends what it saw."""
        seen: list[str] = []
        began = time.monotonic()
        yield seen
        self.rows.append((what, "; ".join(seen), time.monotonic() - began))
        say(f"{time.monotonic() - STARTED:6.0f} s  {what}: {self.rows[-1][1]}")

    def host(self, profiles: str, *files: str, name: str = "host", folder: Path = ROOT, **variables: str) -> Host:
        chosen = {**self.variables, **LIGHT, "COMPOSE_PROFILES": profiles, **variables}
        made = Host(self.engine, f"bestofn-test-{name}", chosen, files, folder)
        self.hosts.append(made)
        return made

    def table(self) -> str:
        lines = ["| step | seen | seconds |", "|---|---|---|"]
        return "\n".join([*lines, *(f"| {what} | {seen} | {seconds:.0f} |" for what, seen, seconds in self.rows)])


def check(holds: bool, what: str) -> str:
    if not holds:
        raise Failed(f"it does not hold: {what}")
    return what


def named(tag: str) -> dict[str, Any]:
    """Names of our images, apart from an operator's."""
    worker = f"bestofn-test-worker:{tag}"
    api = f"bestofn-test-api:{tag}"
    return {"BESTOFN_API_IMAGE": api, "BESTOFN_WORKER_CPU_IMAGE": worker, "BESTOFN_WORKER_IMAGE": worker}


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def check_configs(run: Run) -> None:
    with run.row("`config` of every profile, `config --variables`") as seen:
        for profiles in PROFILES:
            run.host(profiles).compose("config", "--quiet")
        count = len(run.host("cpu").compose("config", "--variables").splitlines()) - 1
        seen.append(f"{len(PROFILES)} sets of profiles, {count} variables")


def build(run: Run, tag: str, commit: str, index: dict[str, str], folder: Path = ROOT) -> None:
    """The images of a checkout, by its compose file."""
    files = ("docker-compose.yml", "docker/mirror.yml")
    host = run.host("cpu", *files, folder=folder, **named(tag), **index, BESTOFN_COMMIT=commit)
    host.compose("build", "--quiet")


def layers(run: Run, image: str) -> list[str]:
    about: Any = run.engine.inspect(image, "image")
    return list(about["RootFS"]["Layers"])


def make_images(run: Run, commit: str, before: str, index: dict[str, str]) -> Path | None:
    """Base images, ours, and ours of the commit before, whose checkout is returned."""
    with run.row("base images, servers") as seen:
        run.variables = images.provide(run.engine)
        seen.append("Debian's packages in place of official images" if run.variables else "official images")
    with run.row("`build`") as seen:
        build(run, "new", commit, index)
        for image, limit in (("api", API_MEGABYTES), ("worker", 0)):
            about: Any = run.engine.inspect(f"bestofn-test-{image}:new", "image")
            size = about["Size"] / 1e6
            check(about["Config"]["Labels"]["org.opencontainers.image.revision"] == commit, "the label has the commit")
            check(not limit or size < limit, f"{image} is below {limit} MB")
            seen.append(f"{image} {size:.0f} MB")
    if not before:
        return None
    checkout = run.folder / "before"
    checkout.mkdir()
    # With the modes of a checkout: another mode is another layer.
    command = ["git", "-c", "tar.umask=0022", "archive", before]
    archive = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", checkout], stdin=archive.stdout, check=True)
    with run.row("`build` of the commit before") as seen:
        build(run, "old", before, index, checkout)
        old, new = (layers(run, f"bestofn-test-worker:{tag}") for tag in ("old", "new"))
        shared = sum(one in old for one in new)
        seen.append(f"{shared} of {len(new)} layers of the worker are the same")
    return checkout


def check_confined(host: Host, service: str) -> None:
    """The service's own process, as the kernel sees it."""
    (container,) = host.containers(service)
    fields = host.kernel(container)
    rights = {fields[field].strip() for field in ("CapEff", "CapPrm", "CapBnd")}
    user = fields["Uid"].split()[0]
    check(user != "0" and rights == {"0" * 16} and fields["NoNewPrivs"] == "1", f"{service} has no rights")
    written = host.compose("exec", "-T", service, "sh", "-c", "(echo x > /etc/written) 2>&1 || true")
    check("Read-only file system" in written, f"{service} cannot write to its root: {written}")


def demo(run: Run) -> None:
    """One container of the worker's image with everything in it, as docs/operate/deployment.md starts it."""
    bind = ["--env", "BESTOFN_HOST=0.0.0.0", "--env", "BESTOFN_PUBLISHED_HOST=127.0.0.1"]
    publish = ["--detach", "--rm", "--init", "--publish", "127.0.0.1:18000:8000"]
    with run.row("one container: `docker run ... up`") as seen:
        began = time.monotonic()
        image = run.variables["BESTOFN_WORKER_CPU_IMAGE"]
        container = run.engine.run("docker", "run", *publish, *bind, image, "up")
        try:
            host = run.host("cpu")
            host.wait_for("it is ready", lambda: host.get("/readyz")["status"] == "ready")
            seen.append(f"ready after {time.monotonic() - began:.0f} s")
            seen.append(check(host.generate(4).result()["status"] == "succeeded", "a job succeeds"))
        finally:
            run.engine.run("docker", "rm", "--force", container)


def one_machine(run: Run) -> None:
    """The profile cpu, with nothing prepared."""
    host = run.host("cpu")
    with run.row("`up --wait`, profile cpu") as seen:
        host.compose("up", "--detach", "--wait")
        seen.append(check(host.get("/readyz")["status"] == "ready", "healthy means ready"))
    with run.row("a request") as seen:
        result = host.generate(4).result()
        seen.append(f"{result['status']}, winner {result['images'][0]['candidate']}")
    with run.row("confinement of " + ", ".join(SERVICES)) as seen:
        for service in SERVICES:
            check_confined(host, service)
        seen.append("not root, no capabilities, read-only root")
    with run.row("`exec api bestofn doctor`") as seen:
        said = host.compose("exec", "-T", "api", "bestofn", "doctor")
        check("cannot listen" not in said, f"doctor knows its own API: {said}")
        seen.append("no failure; it finds its own API")
    with run.row("`down` and `up` with the job's result") as seen:
        host.compose("down")
        host.compose("up", "--detach", "--wait")
        check(host.get(f"/jobs/{result['id']}")["status"] == "succeeded", "the result is still there")
        check(host.generate(4).result()["status"] == "succeeded", "a job succeeds")
        seen.append("still there")
    with run.row("`stop`") as seen:
        for service in reversed(SERVICES):
            (container,) = host.containers(service)
            peak = int(host.kernel(container)["VmHWM"].split()[0]) / 1024
            began = time.monotonic()
            host.compose("stop", service)
            took = time.monotonic() - began
            status = host.state(container)["ExitCode"]
            seen.append(check(status == 0, f"{service} {took:.1f} s, status {status}, {peak:.0f} MiB at most"))
    host.remove()


def faults(run: Run) -> None:
    """Secrets of make-secrets, three workers, and what breaks in the middle of a job."""
    secrets = run.folder / "secrets-one"
    make = [ROOT / "docker" / "make-secrets", secrets]
    key = subprocess.run(make, check=True, capture_output=True, text=True).stdout.split()[-1]
    user = (secrets / "bestofn_redis_url").read_text().removeprefix("redis://").partition("@")[0]
    fill_in_receiver(secrets / "alertmanager", run.edge)
    monitored = run.host("cpu,monitoring", BESTOFN_SECRETS=str(secrets), TEST_QUEUE_USER=user)
    host = run.host("cpu", BESTOFN_SECRETS=str(secrets), TEST_QUEUE_USER=user)
    host.key = key
    with run.row("`up --scale worker-cpu=3`, with secrets and keys") as seen:
        host.compose("up", "--detach", "--wait", "--scale", "worker-cpu=3")
        host.wait_for("three workers", lambda: host.workers() == 3)
        seen.append("three workers")
    with run.row(f"a job of {SAMPLES} candidates, undisturbed") as seen:
        whole = outcome(host.generate(SAMPLES).result())
        seen.append(f"winner {whole[0]}")
    for service, what in (("worker-cpu", "a worker"), ("redis", "Redis"), ("api", "the API")):
        with run.row(f"SIGKILL of {what} in that job") as seen:
            job = host.generate(SAMPLES)
            host.wait_for("the job runs", host.started)
            time.sleep(2)  # the append-only file is written once a second
            container = host.containers(service)[0]
            host.kill(container)
            seen.append(check(outcome(job.result()) == whole, "the same verdicts and winner"))
            host.wait_for("a restart", partial(running, host, container))
    host.wait_for("three workers again", lambda: host.workers() == 3)
    with run.row("`restart redis` while a job waits") as seen:
        host.compose("stop", "worker-cpu")
        host.wait_for("no worker", lambda: host.workers() == 0)
        job = host.generate(8)
        host.wait_for("the job waits", lambda: host.get("/status")["queue"]["queued"] == 1)
        time.sleep(2)
        before = host.keys()
        host.compose("restart", "redis")
        host.wait_for("Redis is back", lambda: host.get("/status")["queue"] is not None)
        seen.append(check((after := host.keys()) == before, f"{before} keys before, {after} after"))
        host.compose("up", "--detach", "--scale", "worker-cpu=1", "worker-cpu")
        seen.append(check(job.result()["status"] == "succeeded", "the job succeeded"))
    monitoring(run, monitored)
    host.remove()


def fill_in_receiver(config: Path, address: str) -> None:
    """What an operator does to the file that make-secrets wrote."""
    text = config.read_text().replace("#webhook_configs", "webhook_configs")
    text = text.replace("https://hooks.example.net/bestofn", f"http://{address}:9998")
    config.write_text(text.replace("receiver: operators\n", "receiver: operators\n  group_wait: 1s\n", 1))


def monitoring(run: Run, host: Host) -> None:
    """Prometheus sees API and worker; an alert reaches the receiver of the secret."""
    services = ["prometheus", "alertmanager"]
    grafana = "BESTOFN_BASE_IMAGE" not in run.variables
    with run.row("profile monitoring") as seen:
        host.compose("up", "--detach", "--wait", *services, *(["grafana"] if grafana else []))
        ask = ["exec", "-T", "prometheus", "wget", "-q", "-O", "-", "http://127.0.0.1:9090/api/v1/"]
        host.wait_for("its targets", lambda: host.compose(*ask[:-1], f"{ask[-1]}targets").count('"health":"up"') >= 2)
        check("alertmanager:9093" in host.compose(*ask[:-1], f"{ask[-1]}alertmanagers"), "it knows Alertmanager")
        receiver = subprocess.Popen(
            [*run.engine.enter, sys.executable, "-c", RECEIVER, run.edge],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            body = '[{"labels": {"alertname": "BestofnNoWorker"}}]'
            post = ["wget", "-q", "-O", "/dev/null", "--header", "Content-Type: application/json", "--post-data", body]
            host.compose("exec", "-T", "alertmanager", *post, "http://127.0.0.1:9093/api/v2/alerts")
            assert receiver.stdout is not None
            check("BestofnNoWorker" in receiver.stdout.readline(), "the alert reaches the receiver")
        finally:
            receiver.kill()
            receiver.wait()
        seen.append("API and worker are scraped; an alert reaches the receiver")
        seen.append("Grafana healthy" if grafana else "Grafana not run: no image")


def running(host: Host, container: str) -> bool:
    return bool(host.state(container)["Running"])


def several_hosts(run: Run) -> None:
    """edge and hosts in one project, gpu in another: TLS to the queue, weights from a hub."""
    secrets = run.folder / "secrets-edge"
    make = [str(ROOT / "docker" / "make-secrets"), str(secrets), run.edge, "16380"]
    key = subprocess.run(make, check=True, capture_output=True, text=True).stdout.split()[-1]
    models: Any = {"BESTOFN_MODEL": f"{MODEL}@main", "BESTOFN_JUDGE": f"{JUDGE}@main"}
    edge = run.host("edge,hosts", BESTOFN_SECRETS=str(secrets), BESTOFN_QUEUE_BIND=run.edge, **models)
    edge.key = key
    files = ("docker-compose.yml", "tests/docker/gpu-host.yml")
    more: Any = {"BESTOFN_SECRETS": str(secrets / "gpu-host"), "TEST_HUB": f"http://{run.edge}:9999", **models}
    gpu = run.host("gpu", *files, name="gpu", **more)
    with run.row("`up --wait`, profiles edge and hosts") as seen:
        edge.compose("up", "--detach", "--wait")
        seen.append("queue, API and TLS are healthy")
    with run.row("profile gpu as a second project, on a CPU") as seen:
        gpu.compose("up", "--detach", "--no-deps", "worker")
        gpu.wait_for("it waits", lambda: "waiting for weights" in gpu.compose("logs", "worker"))
        seen.append("the worker waits for its weights")
        with hub(run):
            gpu.compose("up", "--detach")
            edge.wait_for("a worker by TLS", lambda: edge.workers() == 1)
            seen.append("comes in by TLS once they are whole")
        result = edge.generate(4).result()
        seen.append(check(result["status"] == "succeeded", f"a job with {result['model']['name']}"))
    with run.row("`restart redis-tls`") as seen:
        began = time.monotonic()
        edge.compose("restart", "redis-tls")
        seen.append(f"{time.monotonic() - began:.1f} s")
        edge.wait_for("the worker is back", lambda: edge.generate(4).result()["status"] == "succeeded")
        seen.append("the worker is back")
    gpu.remove()
    edge.remove()


@contextmanager
def hub(run: Run) -> Iterator[None]:
    judge = run.folder / "judge"  # under the hub's revision its calibration does not hold, and workers refuse it
    shutil.copytree(ROOT / "judge" / "weights" / "shapes", judge, ignore=shutil.ignore_patterns("calibration.json"))
    served = [f"{MODEL}={ROOT}/models/weights/shapes", f"{JUDGE}={judge}"]
    program = [sys.executable, str(ROOT / "tests" / "hub.py"), f"{run.edge}:9999", *served]
    process = subprocess.Popen([*run.engine.enter, *program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def upgrade(run: Run, checkout: Path, commit: str) -> None:
    """From the commit before, under a new tag, with a result in the queue."""
    old = run.host("cpu", folder=checkout, **named("old"))
    new = run.host("cpu", **named("new"))
    with run.row("upgrade from the commit before") as seen:
        old.compose("up", "--detach", "--wait")
        before = old.get("/status").get("commit")
        result = old.generate(4).result()
        began = time.monotonic()
        new.compose("up", "--detach", "--wait")
        seen.append(f"`up` {time.monotonic() - began:.0f} s")
        status = new.get("/status")
        check(status["commit"] == commit[:12] != before, f"/status shows the commit {commit}: {status['commit']}")
        check({worker["commit"] for worker in status["workers"]} == {commit[:12]}, "the worker is the new one")
        check(new.get(f"/jobs/{result['id']}")["status"] == "succeeded", "an earlier result is still there")
        check(new.generate(4).result()["status"] == "succeeded", "a job succeeds")
        seen.append("/status shows the new commit; earlier results are still there")
    new.remove()


def steps(run: Run) -> None:
    commit, before = git("rev-parse", "HEAD"), git("rev-parse", "--verify", "HEAD~1")
    check_configs(run)
    run.engine.to_build()
    with images.package_index() as index:
        checkout = make_images(run, commit, before, index)
    run.variables |= named("new")
    run.engine.to_run()
    network: Any = run.engine.inspect("bridge", "network")
    run.edge = network["IPAM"]["Config"][0]["Gateway"]
    demo(run)
    one_machine(run)
    faults(run)
    several_hosts(run)
    if checkout is not None:
        upgrade(run, checkout, commit)


def main() -> int:
    if os.geteuid() != 0:
        say("skipped: needs root")
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    engine: Engine | None = None
    try:
        engine = Engine()
        with tempfile.TemporaryDirectory(dir=WORK) as folder:
            run = Run(engine, Path(folder))
            try:
                steps(run)
            except Failed:
                attempt(lambda: say(run.hosts[-1].compose("logs", "--no-color", "--tail", "20")))
                raise
            finally:
                for host in {host.name: host for host in run.hosts}.values():
                    attempt(host.remove)
            (WORK / "table.md").write_text(run.table() + "\n")
            say(run.table())
    except Failed as error:
        say(f"FAILED: {error}")
        return 1
    finally:
        if engine is not None:
            engine.close()
    say(f"all is well, after {time.monotonic() - STARTED:.0f} s")
    return 0


def attempt(action: Callable[[], None]) -> None:
    try:
        action()
    except Failed as error:
        say(str(error))


if __name__ == "__main__":
    sys.exit(main())
