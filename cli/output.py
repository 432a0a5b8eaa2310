"""A finished job on this machine's disk: the winners' files, the sheet, and what is printed of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import typer

from bestofn.cli.console import say
from bestofn.service.core.jobs import ImageFormat
from bestofn.service.core.schemas import ImageOut, JobResult
from bestofn.service.host.files import naming

FORMATS: Mapping[str, ImageFormat] = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A succeeded job with the bytes of its winners, best first, and small images by candidate."""

    result: JobResult
    images: list[bytes]
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)


def format_of(output: Path) -> ImageFormat:
    """The image format of a file name. Raises typer.BadParameter if it names none."""
    found = FORMATS.get(output.suffix.lower())
    if found is None:
        raise typer.BadParameter(f"{output} must end in {', '.join(FORMATS)}")
    return found


def paths_of(output: Path, count: int) -> list[Path]:
    """`best.png` for one winner; `best-1.png`, `best-2.png`, ... for several."""
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{rank}") for rank in range(1, count + 1)]


def check_writable(*outputs: Path | None) -> None:
    """Raises typer.BadParameter now, not after minutes of drawing, if one of the files cannot be written."""
    named = [output for output in outputs if output is not None]
    for number, output in enumerate(named):
        if output.resolve() in [other.resolve() for other in named[:number]]:
            raise typer.BadParameter(f"{output} is the file of a winner: choose another one for --contact-sheet")
        if not output.parent.is_dir():
            raise typer.BadParameter(f"the folder {output.parent} does not exist")
        if output.is_dir():
            raise typer.BadParameter(f"{output} is a folder: name a file")
        if not os.access(output if output.exists() else output.parent, os.W_OK):
            raise typer.BadParameter(f"{output} may not be written by this user: choose another file")


def write(outcome: Outcome, output: Path, sheet: Path | None) -> JobResult:
    """Write winners and sheet; returns the result with each image's path filled in."""
    written = []
    paths = paths_of(output, outcome.result.parameters["top_k"])  # fewer images may have come back
    for image, content, path in zip(outcome.result.images, outcome.images, paths, strict=False):
        with naming(path):
            path.write_bytes(content)
        written.append(image.model_copy(update={"path": str(path)}))
    result = outcome.result.model_copy(update={"images": written})
    if sheet is not None:
        from bestofn.service.media.codec import decode
        from bestofn.service.media.contact_sheet.sheet import draw_sheet

        drawn = draw_sheet(result, {candidate: decode(data) for candidate, data in outcome.thumbnails.items()})
        with naming(sheet):
            drawn.save(sheet)
    return result


def report(result: JobResult, sheet: Path | None, *, json: bool) -> None:
    """Print the result on stdout: as JSON, or one line a winner. Warnings go to stderr."""
    for warning in result.warnings:
        say(f"warning: {warning}")
    if json:
        typer.echo(result.model_dump_json(indent=2))
        return
    for image in result.images:
        typer.echo(_line(result, image))
    if result.finals is not None:
        matches = sum(match.b is not None for played in result.finals.rounds for match in played)
        typer.echo(f"finals: {matches} matches before {result.finals.judge}")
    if result.confidence is not None:
        typer.echo(_ending(result, result.confidence))
    if sheet is not None:
        typer.echo(f"{sheet}  all {len(result.candidates)} candidates")


def _ending(result: JobResult, confidence: float) -> str:
    """Why a job that might stop has ended, and how sure it is."""
    judged = f"{len(result.candidates)} of {result.parameters['num_samples']}"
    reasons = {"confident": "sure enough", "patience": "given up", "deadline": "out of time"}
    ending = f"{reasons[result.stopped]} after {judged}" if result.stopped else f"all {judged} judged"
    return f"{ending}: the best is right with probability {confidence:.3f}" + (
        "" if result.calibrated else ", uncalibrated"
    )


def _line(result: JobResult, image: ImageOut) -> str:
    score = "" if image.verdict.p_yes is None else f" ({image.verdict.p_yes:.3f})"
    total = len(result.candidates)
    return f"{image.path}  seed {image.seed}, candidate {image.candidate} of {total}: {image.verdict.answer}{score}"
