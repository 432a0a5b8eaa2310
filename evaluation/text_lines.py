"""Lines of text files that people write: prompts, labels, strategies."""

from pathlib import Path


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbers and texts of a file's lines that are not empty, in UTF-8 with or without a byte order mark.

    Raises:
        ValueError: the file is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    # Not splitlines(), which also cuts at characters that JSON strings may hold.
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    return [(number, line) for number, line in lines if line.strip()]
