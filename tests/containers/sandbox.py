"""Runs services as a container engine would, with the tools of util-linux: namespaces, a read-only root, no rights."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from compose import Service
from images import buildah

STOP_SECONDS = 30.0
HOSTS = "127.0.0.1 localhost redis api redis-tls\n"  # all share one network namespace
# No capability, now or later, and no way to any through a set-user-ID program.
DROP = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]

LOOPBACK_UP = """
import fcntl, socket, struct
up = struct.pack("16sH14s", b"lo", 1 | 64, bytes(14))
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, up)
"""

# The root becomes a mount of its own, is filled, and is made read-only; "$@" is what then runs in it.
ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755,size=1m dev "$root/dev"
for name in null zero full random urandom; do touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
for name in fd fd/0 fd/1 fd/2; do ln -s "/proc/self/$name" "$root/dev/$(basename "$name")"; done
rm "$root/dev/0"; ln -s /proc/self/fd/1 "$root/dev/stdout"; ln -s /proc/self/fd/2 "$root/dev/stderr"
mkdir "$root/dev/shm"; mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
{mounts}
mount -o remount,bind,{mode} "$root"
exec chroot "$root" "$@"
"""


class Network:
    """A network namespace with nothing but loopback, held by a process that sleeps."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.path = f"/proc/{self._holder.pid}/ns/net"
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(self.path) == own:
            time.sleep(0.01)
        subprocess.run([*self.enter(), "python3", "-c", LOOPBACK_UP], check=True)

    def enter(self) -> list[str]:
        """The start of a command that runs in here."""
        return ["nsenter", f"--net={self.path}"]

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Container:
    """One service, running. Volumes are folders that containers of one `Network` share by name."""

    def __init__(self, service: Service, image: str, network: Network, volumes: Path) -> None:
        self.service = service
        self.log = volumes.parent / f"{service.name}.log"
        self._name = buildah("from", image)
        self._root = Path(buildah("mount", self._name))
        user, _, group = self._ids(service.user).partition(":")
        self._rights = ["setpriv", f"--reuid={user}", f"--regid={group}", *DROP]
        self._environment = [
            "env",
            "--chdir=/",
            "-i",
            *(f"{name}={value}" for name, value in service.environment.items()),
        ]
        script = ENTER.format(mounts="\n".join(self._mounts(volumes)), mode="ro" if service.read_only else "rw")
        apart = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork"]
        inside = [*self._rights, *self._environment, *service.command]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*network.enter(), *apart, "sh", "-c", script, "enter", self._root, *inside], stdout=log, stderr=log
            )
        while self.running() and not self._entered():
            time.sleep(0.02)

    def _entered(self) -> bool:
        """Whether the process has left this machine's root."""
        try:
            return os.readlink(f"/proc/{self.pid}/root") != "/"
        except (IndexError, FileNotFoundError):
            return False

    def _ids(self, user: str) -> str:
        """uid:gid of a user that may be a name of the image's."""
        if user[0].isdigit():
            return user
        lines = (self._root / "etc" / "passwd").read_text().splitlines()
        return ":".join(next(line.split(":")[2:4] for line in lines if line.startswith(f"{user}:")))

    def _mounts(self, volumes: Path) -> list[str]:
        """Shell commands that mount what the service names; what they are mounted on is made now."""
        commands = [f'mount -t tmpfs -o mode=1777 tmpfs "$root{path}"' for path in self.service.temporary]
        for path, (name, read_only) in self.service.volumes.items():
            folder, inside = volumes / name, self._root / path.lstrip("/")
            if not folder.is_dir():  # a new volume takes over what the image has there, its owner too
                inside.mkdir(parents=True, exist_ok=True)
                shutil.copytree(inside, folder)
                shutil.chown(folder, inside.stat().st_uid, inside.stat().st_gid)
            inside.mkdir(parents=True, exist_ok=True)
            commands += bind(folder, path, "ro" if read_only else "rw")
        hosts = volumes.parent / "hosts"
        hosts.write_text(HOSTS)
        for path, file in {**self.service.secrets, **self.service.configs, "/etc/hosts": hosts}.items():
            target = self._root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
            commands += bind(file, path, "ro")
        return commands

    @property
    def pid(self) -> int:
        """Of the service's own process, as this machine sees it."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def run(self, *command: str, timeout: float = 120.0) -> "subprocess.CompletedProcess[str]":
        """Runs a command beside the service, with its user, rights and environment."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--uts", "--root"]
        return subprocess.run(
            [*enter, *self._rights, *self._environment, *command], capture_output=True, text=True, timeout=timeout
        )

    def healthy(self) -> bool:
        """Whether the service's health check passes."""
        return self.running() and self.run(*self.service.health).returncode == 0

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float) -> int:
        """The exit status of a service that ends by itself."""
        return self._process.wait(seconds)

    def stop(self) -> tuple[int, float]:
        """SIGTERM, as a container engine does; the exit status and the seconds that it took."""
        started = time.monotonic()
        if self.running():
            os.kill(self.pid, signal.SIGTERM)
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            status = self._kill()
        return status, time.monotonic() - started

    def _kill(self) -> int:
        """Ends the first process of the container's process namespace, and with it all others there."""
        os.kill(self.pid, signal.SIGKILL)
        return self._process.wait()

    def remove(self) -> None:
        if self.running():
            self._kill()
        buildah("umount", self._name)
        buildah("rm", self._name)


def bind(source: Path, path: str, mode: str) -> list[str]:
    target = f'"$root{path}"'
    return [f"mount --bind {shlex.quote(str(source))} {target}", f"mount -o remount,bind,{mode} {target}"]
