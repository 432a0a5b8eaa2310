"""Files that are written."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """An OSError within names the file: that of a full disk, which comes as the file is written, names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
