"""The keys in force: read from their file again and again, so that a key is revoked without a restart."""

import asyncio
import hmac
from concurrent.futures import ThreadPoolExecutor

import structlog

from bestofn.service.api.key_file import Key, keys_file, parse, read, sha256
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings

READ_SECONDS = 1.0  # between two readings of the file of keys

log = structlog.get_logger()


class Keyring:
    """Who may call. `on`: whether keys are asked for; once they are, they are for as long as the process lives.

    A file that cannot be read leaves the keys unchanged. A deleted file leaves no key: all requests are refused.
    `trouble` says so while it lasts.
    """

    def __init__(self, settings: Settings) -> None:
        """Reads the file, if there is one. Without one no keys are asked for.

        Raises:
            SetupError: it cannot be read, or the settings name it and it is not there.
        """
        self.file = keys_file(settings)
        self.on = settings.keys_file is not None
        self.trouble: str | None = None
        self._keys: tuple[Key, ...] = ()
        self._text: str | None = None
        self.refresh()
        if self.trouble is not None:
            raise SetupError(f"{self.trouble}; mend it, or make a key: bestofn keys add NAME")

    def __len__(self) -> int:
        return len(self._keys)

    def caller(self, key: str) -> str | None:
        """The name of a key. All hashes are compared, so that the time of a call gives nothing away."""
        sent, found = sha256(key), None
        for known in self._keys:
            if hmac.compare_digest(sent, known.sha256):
                found = known.name
        return found

    def refresh(self) -> None:
        """Reads the file: the whole of it each time, since links and fast writers may leave its time as it was."""
        try:
            text = read(self.file)
            if text != self._text:
                self._keys, self._text, self.on = parse(text, self.file), text, True
            self.trouble = None
        except (FileNotFoundError, NotADirectoryError):
            self._keys, self._text = (), None
            self.trouble = f"{self.file} is not there" if self.on else None
        except SetupError as error:
            self.on, self.trouble = True, error.detail

    async def watch(self) -> None:
        """Read the file every second in the background and log every change."""
        logged = None
        loop = asyncio.get_running_loop()
        # A thread of its own: lookups of host names may hold all of the loop's threads for seconds.
        reader = ThreadPoolExecutor(1, "keys")
        while True:
            now = self.on, self.trouble, self._keys
            if self.on and now != logged:
                names = sorted({key.name for key in self._keys})
                if self.trouble is None:
                    log.info("keys in force", file=str(self.file), names=names)
                else:
                    log.error("the keys cannot be read", why=self.trouble, still_in_force=names)
            logged = now
            await asyncio.sleep(READ_SECONDS)
            try:
                await loop.run_in_executor(reader, self.refresh)
            except Exception:  # or no key could be revoked any more
                log.exception("the keys could not be looked at")
