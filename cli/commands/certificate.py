"""bestofn certificate: a certificate for trying out signed images."""

from pathlib import Path
from typing import Annotated

import typer

from bestofn.cli.console import say
from bestofn.service.media.provenance import write_certificate


def certificate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder for both files.", show_default=False)],
) -> None:
    """Write a C2PA certificate and key for trying out, and print the settings that sign winners with them.

    Readers show its signatures as valid, but of an issuer on no trust list. Publish with a certificate of an issuer
    that is on one.
    """
    chain, key = write_certificate(folder)
    say("valid for a year; its issuer is on no trust list")
    typer.echo(f"BESTOFN_C2PA_CERTIFICATE={chain.absolute()}\nBESTOFN_C2PA_KEY={key.absolute()}")
