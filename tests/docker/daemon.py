"""A Docker daemon: the one that is here, or one of our own from Debian's packages, unpacked and not installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
WORK = (ROOT / "out" / "docker").resolve()
ENGINE = WORK / "engine"
# Compose v2 and its BuildKit are in Debian from trixie on. They run on bookworm's libraries too; what does not is taken
# from the packages of the system that runs here.
TRIXIE = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd", "tini")
OURS = (
    *("runc", "libseccomp2", "iptables", "libxtables12", "libip4tc2", "libip6tc2", "libnftnl11", "libmnl0"),
    *("libnfnetlink0", "libnetfilter-conntrack3", "debootstrap"),
)
SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main\n"
START_SECONDS = 60.0


class Failed(Exception):
    """A command failed; what it wrote is in the message."""


class Engine:
    """A daemon to talk to. `enter` begins commands that reach its published ports."""

    def __init__(self) -> None:
        self.enter: list[str] = []
        self.environment = dict(os.environ)
        self.own = not usable(self.environment)
        self._daemon: subprocess.Popen[bytes] | None = None
        if self.own:
            unpack()
            self.environment |= own_environment()

    def to_build(self) -> None:
        """Our own daemon in the machine's network, without one for containers: builds use the machine's."""
        if self.own:
            self._start([], ["--bridge=none", "--iptables=false"])

    def to_run(self) -> None:
        """Our own daemon in a network namespace of its own: no address or rule of the machine changes."""
        if self.own:
            self.stop()
            subprocess.run(["ip", "netns", "delete", namespace()], stderr=subprocess.DEVNULL)
            subprocess.run(["ip", "netns", "add", namespace()], check=True)
            # Not `ip netns exec`, which mounts another /sys, without the cgroups.
            self.enter = ["nsenter", f"--net=/run/netns/{namespace()}"]
            subprocess.run([*self.enter, "ip", "link", "set", "lo", "up"], check=True)
            self._start(self.enter, [])

    def _start(self, enter: list[str], options: list[str]) -> None:
        paths = ["--data-root", WORK / "data", "--exec-root", WORK / "exec", "--pidfile", WORK / "pid"]
        command = [*enter, "dockerd", *paths, "-H", f"unix://{WORK}/sock", *options]
        with (WORK / "dockerd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [str(part) for part in command], stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not usable(self.environment):
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"dockerd did not start, see {WORK}/dockerd.log")
            time.sleep(0.3)

    def stop(self) -> None:
        """Ends our own daemon, and with it every container."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            self._daemon.wait(60)
            self._daemon = None

    def close(self) -> None:
        self.stop()
        if self.own:
            subprocess.run(["ip", "netns", "delete", namespace()], stderr=subprocess.DEVNULL)

    def run(self, *command: str | Path, folder: Path = ROOT, more: Mapping[str, str] | None = None) -> str:
        """Runs a command in the daemon's network and returns what it printed; raises `Failed`."""
        done = subprocess.run(
            [*self.enter, *command],
            cwd=folder,
            env={**self.environment, **(more or {})},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = (done.stdout + done.stderr)[-4000:]
            raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said}")
        return done.stdout.strip()

    def inspect(self, name: str, kind: str = "container") -> dict[str, Any]:
        """What the daemon knows of a container or an image."""
        return dict(json.loads(self.run("docker", kind, "inspect", name))[0])


def usable(environment: Mapping[str, str]) -> bool:
    """Whether a daemon answers, and a client with Compose is here."""
    if shutil.which("docker", path=environment.get("PATH")) is None:
        return False
    asked = (["docker", "version"], ["docker", "compose", "version"])
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return all(subprocess.run(command, env=dict(environment), **quiet).returncode == 0 for command in asked)


def namespace() -> str:
    return f"bestofn-{os.getpid()}"


def missing() -> list[str]:
    """What a daemon of our own wants and is not here."""
    return [name for name in ("apt-get", "dpkg-deb", "ip", "nsenter") if shutil.which(name) is None]


def unpack() -> None:
    """The packages' files under `ENGINE`; nothing on the system changes."""
    if (ENGINE / "complete").exists():
        return
    debs, lists = WORK / "debs", WORK / "apt"
    for folder in (debs, lists / "lists" / "partial", lists / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (lists / "trixie.list").write_text(SOURCE)
    (lists / "status").touch()
    own = {
        "Dir::Etc::sourcelist": lists / "trixie.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": lists / "lists",
        "Dir::State::status": lists / "status",
        "Dir::Cache": lists / "cache",
    }
    options = [f"-o{name}={value}" for name, value in own.items()]
    with (WORK / "unpack.log").open("w") as log:
        for chosen, names in ((options, TRIXIE), ([], OURS)):
            for command in (["update"], ["download", *names]):
                if subprocess.run(["apt-get", "-q", *chosen, *command], cwd=debs, stdout=log, stderr=log).returncode:
                    raise Failed(f"apt-get {command[0]} failed, see {log.name}")
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, ENGINE], check=True)
    for family in ("iptables", "ip6tables"):
        for name in (family, f"{family}-save", f"{family}-restore"):
            (ENGINE / "usr" / "sbin" / name).symlink_to("xtables-nft-multi")
    (ENGINE / "complete").touch()


def own_environment() -> dict[str, str]:
    """For our own daemon and for its clients."""
    libraries = next((ENGINE / "usr" / "lib").glob("*-linux-gnu"))
    plugins = WORK / "config" / "cli-plugins"
    if not plugins.is_symlink():
        plugins.parent.mkdir(parents=True, exist_ok=True)
        plugins.symlink_to(ENGINE / "usr" / "libexec" / "docker" / "cli-plugins")
    return {
        "PATH": f"{ENGINE}/usr/sbin:{ENGINE}/usr/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(libraries),
        "XTABLES_LIBDIR": str(libraries / "xtables"),
        "DEBOOTSTRAP_DIR": str(ENGINE / "usr" / "share" / "debootstrap"),
        "DOCKER_HOST": f"unix://{WORK}/sock",
        "DOCKER_CONFIG": str(WORK / "config"),
    }


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
