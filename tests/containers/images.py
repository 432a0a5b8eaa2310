"""Images without a daemon and without a registry: a Debian base by debootstrap, the rest by buildah."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compose import ROOT

WORK = ROOT / "out" / "containers"
BASE, API, WORKER, SERVERS = (f"localhost/bestofn-{name}" for name in ("base", "api", "worker", "servers"))
# Stages that hold what others made; with names they outlive `prune`, and the next build finds them.
STAGES = ("packages", "worker-packages")
PACKAGES = "python3,python3-venv,ca-certificates"
# What a slim image leaves out too.
LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt/archives", "var/lib/apt/lists")


def buildah(*arguments: str | Path, quiet: bool = True) -> str:
    """Runs buildah on a store of our own, and returns what it printed."""
    command = ["buildah", "--root", WORK / "store", "--runroot", WORK / "run", "--storage-driver", storage()]
    output = subprocess.PIPE if quiet else None
    done = subprocess.run([*command, *arguments], stdout=output, stderr=output, text=True, cwd=ROOT)
    if done.returncode:
        sys.stderr.write(f"{done.stdout or ''}{done.stderr or ''}")
        raise SystemExit(f"buildah {arguments[0]} ended with {done.returncode}")
    return (done.stdout or "").strip()


def storage() -> str:
    """overlay where the kernel has it; vfs copies every layer."""
    return "overlay" if "\toverlay" in Path("/proc/filesystems").read_text() else "vfs"


def make_base() -> None:
    """A Debian with Python, as a tarball that is kept, and as an image."""
    tarball = WORK / "base.tar"
    if not tarball.is_file():
        WORK.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="base-", dir=WORK))
        log = WORK / "debootstrap.log"
        with log.open("w") as stream:
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder]
            if subprocess.run(command, stdout=stream, stderr=stream).returncode:
                raise SystemExit(f"debootstrap failed, see {log}")
        for name in LEFT_OUT:
            shutil.rmtree(folder / name)
            (folder / name).mkdir()
        partial = tarball.with_suffix(".partial")
        subprocess.run(["tar", "-C", folder, "--numeric-owner", "-cf", partial, "."], check=True)
        partial.rename(tarball)
        shutil.rmtree(folder)
    if not exists(BASE):
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, tarball, "/")
        buildah("commit", "--quiet", "--rm", container, BASE)


def exists(image: str) -> bool:
    return any(image in (line or "") for line in buildah("images", "--noheading", "--format", "{{.Name}}").split())


def make_servers() -> None:
    """Redis and HAProxy from Debian, in place of their official images."""
    if exists(SERVERS):
        return
    container = buildah("from", BASE)
    install = "apt-get -qq update && apt-get -qq install -y --no-install-recommends redis-server haproxy >/dev/null"
    buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", install)
    buildah("run", "--isolation", "chroot", container, "--", "install", "-d", "-o", "redis", "-g", "redis", "/data")
    buildah("config", "--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah("commit", "--quiet", "--rm", container, SERVERS)


def build(target: str, image: str) -> None:
    """Builds one target of docker/Dockerfile, pip reaching the same index as pip here."""
    arguments = ["--isolation", "chroot", "--format", "docker", "--layers", "--target", target]
    arguments += ["--build-arg", f"BASE={BASE}"]
    for option in pip_options():
        arguments += option
    buildah("bud", "--quiet", *arguments, "-f", "docker/Dockerfile", "-t", image, ".", quiet=False)


def prune() -> None:
    """Lets go of images that a newer build has replaced; named ones keep the layers that they were made of."""
    buildah("rmi", "--prune", "--force")


def pip_options() -> list[list[str]]:
    """This machine's configuration of pip as a build secret, and the files that it names as read-only mounts."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    values = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE))
    config = WORK / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()))
    mounts = sorted({str(folder) for value in values.values() for word in value.split() for folder in local(word)})
    return [["--secret", f"id=pip,src={config}"], *(["--volume", f"{path}:{path}:ro"] for path in mounts)]


def local(word: str) -> list[Path]:
    """The folder that a word of the configuration needs, if it is one of this machine."""
    if word.startswith("file://"):
        return [Path(word.removeprefix("file://")).parent]  # an index links to files beside it
    path = Path(word)
    if not path.is_absolute() or not path.exists():
        return []
    return [path.parent if path.is_file() else path]


def configuration(image: str) -> dict[str, Any]:
    """Env, Entrypoint, Cmd of an image."""
    return dict(json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"])


def megabytes(image: str) -> float:
    """Its size as `docker images` would say it: all layers, not compressed."""
    container = buildah("from", image)
    root = Path(buildah("mount", container))
    used = subprocess.run(["du", "-sx", "--bytes", root], capture_output=True, text=True, check=True).stdout
    buildah("rm", container)
    return int(used.split()[0]) / 1e6
