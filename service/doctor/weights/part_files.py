"""Facts of one part of a checkpoint from its files alone: index, headers, dtypes, tokenizer. Needs no torch."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bestofn.models.errors import CheckpointError
from bestofn.models.weight_files import BASES, check_part, header, read_json, weight_files
from bestofn.service.doctor.findings import Finding

DTYPES = ("BF16", "F16", "F32")
AGAIN = "download or copy it again, the whole of it"


def guarded(what: str, check: Iterator[Finding], fix: str = AGAIN) -> Iterator[Finding]:
    """The findings of a check; a damaged or missing file is one of them, and ends this check alone."""
    try:
        yield from check
    except CheckpointError as error:
        yield Finding("fail", what, str(error), fix)


def weights(folder: Path) -> Iterator[Finding]:
    """Whether a part's weight files are whole, agree with their index, and hold numbers that loaders take."""
    return guarded(folder.name, _weights(folder))


def _weights(folder: Path) -> Iterator[Finding]:
    part = folder.name
    check_part(folder)
    tables = {file.name: header(file) for file in weight_files(folder)}
    yield from _index(folder, tables)
    # A count of training steps is a whole number without a shape.
    entries = {name: entry for table in tables.values() for name, entry in table.items() if entry["shape"]}
    stored = {name: entry["dtype"] for name, entry in entries.items()}
    kinds = {dtype: list(stored.values()).count(dtype) for dtype in sorted(set(stored.values()))}
    shown = ", ".join(f"{count} of {dtype}" for dtype, count in kinds.items())
    other = [name for name, dtype in stored.items() if dtype not in DTYPES]
    if other:
        found = f"{other[0]} is {stored[other[0]]}, one of {len(other)} that are not {', '.join(DTYPES)}"
        yield Finding("fail", part, found, "a quantised file, which loaders refuse or misread: take another variant")
    else:
        yield Finding("ok", part, f"{len(stored)} weights in {len(tables)} files: {shown}")


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every stored weight.

    Raises:
        CheckpointError: a file is damaged or missing.
    """
    return {name: tuple(entry["shape"]) for file in weight_files(folder) for name, entry in header(file).items()}


def embedded_entries(folder: Path) -> float:
    """Rows of a part's token embedding; infinity if no file says it, which is a finding on the part's weights."""
    try:
        rows = (shape[0] for name, shape in shapes(folder).items() if name.endswith("embed_tokens.weight"))
        return next(rows, math.inf)
    except CheckpointError:
        return math.inf


def _index(folder: Path, tables: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """Disagreements of an index with its files."""
    for base in BASES:
        index = folder / f"{base}.safetensors.index.json"
        if not index.is_file():
            continue
        named = read_json(index)["weight_map"]
        lost = [name for name, file in named.items() if name not in tables.get(file, {})]
        extra = [name for table in tables.values() for name in table if name not in named]
        if lost:
            found = f"{index.name} names {lost[0]} in {named[lost[0]]}, which does not have it; {len(lost)} in all"
            yield Finding("warn", folder.name, found, f"a model that needs it is refused: {AGAIN}")
        if extra:
            found = f"{extra[0]} is in a file and not in {index.name}; {len(extra)} in all"
            yield Finding("warn", folder.name, found, "a loader that reads the index leaves it out")


class TokenizerFacts:
    """What tokenizer.json says, read with the `tokenizers` library."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            CheckpointError: the file is missing or damaged.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain exceptions
            raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error

    @property
    def size(self) -> int:
        """Entries, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def ids(self, text: str, *, control: bool = False) -> list[int]:
        """Ids of a text, with control tokens if asked."""
        return list(self._tokenizer.encode(text, add_special_tokens=control).ids)

    def knows(self, text: str) -> bool:
        """Whether a text is one token of the vocabulary."""
        ids = self.ids(text)
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        return len(ids) == 1 and (unknown is None or ids[0] != self._tokenizer.token_to_id(unknown))
