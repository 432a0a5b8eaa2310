"""bestofn keys: who may call the API: make, list and revoke keys, while servers run."""

from pathlib import Path
from typing import Annotated

import typer

from bestofn.cli.console import say
from bestofn.service.api import key_file as keyfile
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import load_settings

program = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of the API, while servers run.")

File = Annotated[
    Path | None,
    typer.Option("--file", help="The file of keys.", show_default="BESTOFN_KEYS_FILE, or keys in the data folder"),
]
Name = Annotated[str, typer.Argument(help="Whose key it is.", metavar="NAME", show_default=False)]


@program.command(epilog="Example: `bestofn keys add alice`")
def add(
    name: Name,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make one more for a name that has a key already.")] = False,
    file: File = None,
) -> None:
    """Make a key and print it, this once: the file keeps its hash. Servers take it within two seconds.

    `--file -` prints the line for the file instead, and the key on stderr: for files that are elsewhere.
    """
    key, kept = keyfile.new_key(name)
    if file == Path("-"):
        typer.echo(str(kept))
        say(f"the key of {name}: {key}")
        return
    path = _path(file)
    new = not path.exists()
    with keyfile.change(path) as lines:
        known = any(_is_of(name, line) for line in lines)
        if known and not rotate:
            raise SetupError(f"{name} has a key: choose another name, or make it one more with --rotate")
        if rotate and not known:
            raise SetupError(f"{name} has no key yet; leave --rotate out")
        lines.append(str(kept))
    if new:
        say(f"{path} is new: from now on servers that use it ask for a key")
    typer.echo(key)
    if rotate:
        say(f"both keys of {name} are good; when the new one is in use: bestofn keys revoke {name} --old")


@program.command("list", epilog="Example: `bestofn keys list`")
def list_keys(file: File = None) -> None:
    """Print name, day and the first digits of the hash of every key."""
    path = _path(file)
    if not path.exists():
        raise SetupError(f"there is no {path}: bestofn keys add NAME makes the first key, --file names another file")
    for key in keyfile.parse(keyfile.read(path), path):
        typer.echo(f"{key.name:24} {key.created or '-'!s:10} {key.sha256[:12]}")


@program.command(epilog="Example: `bestofn keys revoke alice`")
def revoke(
    name: Name,
    old: Annotated[bool, typer.Option("--old", help="Only the older ones: the last that was made stays.")] = False,
    file: File = None,
) -> None:
    """Revoke the keys of a name. Servers refuse them within two seconds; calls under way are finished."""
    path = _path(file)
    if not path.exists():
        raise SetupError(f"there is no {path}; --file names another one")
    with keyfile.change(path) as lines:
        found = [number for number, line in enumerate(lines) if _is_of(name, line)]
        revoked = found[:-1] if old else found
        if not revoked:
            raise SetupError(f"{name} has {'no older key' if old and found else 'no key'} in {path}")
        lines[:] = [line for number, line in enumerate(lines) if number not in revoked]
    say(f"revoked {len(revoked)} of the keys of {name}")


def _path(file: Path | None) -> Path:
    return file or keyfile.keys_file(load_settings())


def _is_of(name: str, line: str) -> bool:
    return line.split()[:1] == [name]
