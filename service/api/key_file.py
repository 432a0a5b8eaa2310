"""The file of API keys: a name and a hash a line, read strictly, changed as a whole."""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings

PREFIX = "bo_"  # by which people and scanners of secrets recognise one
KEY_BYTES = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key: whose it is, the SHA-256 of its text in hexadecimal, and the day it was made."""

    name: str
    sha256: str
    created: date | None = None

    def __str__(self) -> str:
        """Its line in the file."""
        return " ".join((self.name, self.sha256, *([self.created.isoformat()] if self.created else [])))


def keys_file(settings: Settings) -> Path:
    """Where the keys of these settings are, or would be."""
    return settings.keys_file or settings.data_dir / "keys"


def new_key(name: str) -> tuple[str, Key]:
    """A random key of 256 bits, and what is to be kept of it. Raises SetupError if `name` is none."""
    text = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return text, Key(_checked(name), sha256(text), datetime.now(UTC).date())


def sha256(text: str) -> str:
    """SHA-256 of a key. A fast hash without salt is sufficient: 256 random bits cannot be guessed."""
    return hashlib.sha256(text.encode()).hexdigest()


def read(file: Path) -> str:
    """The text of a file of keys. Raises FileNotFoundError, NotADirectoryError; SetupError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SetupError(f"{file} cannot be read: {reason}") from None


def parse(text: str, file: Path) -> tuple[Key, ...]:
    """The keys in the text of a file: `name sha256 [yyyy-mm-dd]` a line; empty lines and those after a # do not count.

    Several keys may have one name: they are of one caller, as the old and the new one while it changes over.

    Raises:
        SetupError: a line is otherwise. It is named by its number; what it holds may be a key itself.
    """
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{file}, line {number}"
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            name, digest, *rest = fields
            created = date.fromisoformat(*rest) if rest else None
        except (ValueError, TypeError):
            raise SetupError(f"{where}: it is not `name sha256 [yyyy-mm-dd]`") from None
        if not _SHA256.fullmatch(digest):
            raise SetupError(f"{where}: a SHA-256 has 64 of the digits 0-9 and a-f (printf %s KEY | sha256sum)")
        if digest in keys:
            raise SetupError(f"{where}: this key is already in the file")
        try:
            keys[digest] = Key(_checked(name), digest, created)
        except SetupError as error:
            raise SetupError(f"{where}: {error.detail}") from None
    return tuple(keys.values())


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise SetupError("a key's name has 1 to 64 letters, digits and . _ -, and begins with a letter or digit")
    return name


@contextlib.contextmanager
def change(file: Path) -> Iterator[list[str]]:
    """The file's lines, to be changed in place; afterwards the file has all of the changes, or none after an error.

    A new file is its owner's alone (0600); one that was there keeps its owner and its mode.

    Raises:
        SetupError: it cannot be written, somebody else is changing it, or no server would read the outcome.
    """
    file = file.resolve()
    draft = file.with_name(f"{file.name}.new")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        if draft.exists():
            raise SetupError(f"{draft} is there: {file} is being changed, or that broke off; then remove it") from None
        raise _unwritable(file, error) from None
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            lines = []
            if file.exists():
                lines = read(file).splitlines()
                before, ours = file.stat(), os.fstat(descriptor)
                if (before.st_uid, before.st_gid) != (ours.st_uid, ours.st_gid):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, before.st_mode & 0o777)
            yield lines
            parse("\n".join(lines), file)
            stream.writelines(f"{line}\n" for line in lines)
            stream.flush()
            os.fsync(descriptor)
        draft.replace(file)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):  # such as that of a full disk
            raise _unwritable(file, error) from None
        raise


def _unwritable(file: Path, error: OSError) -> SetupError:
    return SetupError(
        f"{file} cannot be written ({error.strerror}): name another file with --file or BESTOFN_KEYS_FILE, or "
        "another folder with BESTOFN_DATA_DIR"
    )
