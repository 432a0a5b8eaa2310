"""The images that the compose file names: pulled, or made from Debian's packages where no registry is reached."""

import functools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from daemon import ROOT, WORK, Engine, Failed

BASE = "bestofn-stand-in-base"
PACKAGES = "python3,python3-venv,ca-certificates"
# What a slim image leaves out too.
LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt/archives", "var/lib/apt/lists")
STAND_INS = {"REDIS": "redis", "HAPROXY": "haproxy", "PROMETHEUS": "prometheus", "ALERTMANAGER": "alertmanager"}
INDEX_PORT = 18098  # always the same: layers depend on the addresses with which they were built
AUTHORITIES = Path("etc/ssl/certs/ca-certificates.crt")


def provide(engine: Engine) -> dict[str, str]:
    """Makes every image but ours available; returns the variables that name stand-ins. Grafana has none."""
    named = dict(re.findall(r"\$\{BESTOFN_(\w+)_IMAGE:-([^}]+)\}", (ROOT / "docker-compose.yml").read_text()))
    if all(pulled(engine, named[name]) for name in ("BASE", *STAND_INS, "GRAFANA")):
        return {}
    make_base(engine)
    for target in STAND_INS.values():
        # The standard input is the Dockerfile: no context.
        build = ["docker", "buildx", "build", "--quiet", "--network", "host", "--target", target]
        build += ["--build-arg", f"BASE={BASE}", "--tag", f"bestofn-stand-in-{target}"]
        engine.run(*build, ROOT / "tests" / "docker")
    images = {f"BESTOFN_{name}_IMAGE": f"bestofn-stand-in-{target}" for name, target in STAND_INS.items()}
    return {"BESTOFN_BASE_IMAGE": BASE, **images}


def pulled(engine: Engine, image: str) -> bool:
    try:
        engine.run("docker", "pull", "--quiet", image)
    except Failed:
        return False
    return True


def make_base(engine: Engine) -> None:
    """A Debian with Python, as a tarball that is kept, and as an image: imported again it would be another one."""
    if engine.run("docker", "images", "--quiet", BASE):
        return
    tarball = WORK / "base.tar"
    if not tarball.is_file():
        folder = WORK / "base"
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        program = shutil.which("debootstrap", path=engine.environment["PATH"])
        if program is None:
            raise Failed("the base image cannot be pulled, and there is no debootstrap to make one")
        engine.run("sh", program, "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder)
        for name in LEFT_OUT:
            shutil.rmtree(folder / name)
            (folder / name).mkdir()
        if (Path("/") / AUTHORITIES).is_file():  # those of a proxy too, behind which this machine may be
            shutil.copy(Path("/") / AUTHORITIES, folder / AUTHORITIES)
        partial = tarball.with_suffix(".partial")
        subprocess.run(["tar", "-C", folder, "--numeric-owner", "-cf", partial, "."], check=True)
        partial.rename(tarball)
        shutil.rmtree(folder)
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    engine.run("docker", "import", "--change", f"ENV {path}", tarball, BASE)


@contextmanager
def package_index() -> Iterator[dict[str, str]]:
    """Variables of compose with which builds reach the package index that pip reaches here.

    Folders of this machine that its configuration names are served on loopback meanwhile.
    """
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    values = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE))
    served = WORK / "served"
    shutil.rmtree(served, ignore_errors=True)
    served.mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", INDEX_PORT), functools.partial(_Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"

    def reachable(word: str) -> str:
        folder = Path(word.removeprefix("file://"))
        if not folder.is_absolute() or not folder.is_dir():
            return word
        # An index links to the files next to it.
        top = folder.parent if word.startswith("file://") else folder
        name = top.as_posix().strip("/").replace("/", "-")
        if not (served / name).exists():
            (served / name).symlink_to(top)
        return f"{address}/{name}/{folder.relative_to(top)}/"

    kept = ("index-url", "extra-index-url", "find-links", "timeout", "trusted-host")
    lines = {name: " ".join(map(reachable, values[name].split())) for name in kept if name in values}
    config = WORK / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items()))
    own = lines.get("extra-index-url") or lines.get("index-url")
    try:
        yield {
            "BESTOFN_PIP_CONFIG": str(config),
            **({} if own is None else {"BESTOFN_TORCH_CPU_INDEX": own.split()[-1]}),
        }
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
