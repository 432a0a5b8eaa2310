"""bestofn inspect: the metadata of images, the call that draws each again, and whether their signatures hold."""

import json as jsonlib
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bestofn.cli.console import say
from bestofn.service.core.errors import SetupError
from bestofn.service.media.metadata import OtherStory, Story, read_story
from bestofn.service.media.provenance import INSTALL, INVALID, TRUSTED, Provenance, read_provenance
from bestofn.service.media.reproduce import diffusers_call

EPILOG = """Examples:

`bestofn inspect best.png`

`bestofn inspect *.png --json | jq '.[].story.seed'`
"""

MAX_BYTES = 256 * 2**20
MAX_SHOWN = 2000  # characters of another program's text


def story_of(path: Path) -> tuple[Story | OtherStory | None, bytes]:
    """What is written in an image's file, and the file's bytes.

    Raises:
        SetupError: it is no image, too large to be one of ours, or its story is damaged.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SetupError(f"{path} has {size >> 20} MiB; images of up to {MAX_BYTES >> 20} MiB are read")
    data = path.read_bytes()
    try:
        return read_story(data), data
    except ValueError as error:
        raise SetupError(f"{path}: {error}") from error


def inspect(
    images: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Files of images.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one entry an image.")] = False,
) -> None:
    """Print how images were made, and the diffusers call that makes them again.

    A C2PA signature is checked. Ends with status 1 if an image has no metadata of bestofn, or a signature that does not
    hold.
    """
    entries: list[dict[str, Any]] = []
    missing = 0
    for path in images:
        story: Story | OtherStory | None = None
        signature: Provenance | None = None
        error: str | None = None
        try:
            story, data = story_of(path)
            signature = read_provenance(data)
        except SetupError as problem:
            error = problem.detail
        except OSError as problem:
            error = f"{path}: {problem.strerror}"
        missing += not isinstance(story, Story) or (signature is not None and signature.state == INVALID)
        if json:
            entries.append(
                _entry(path, story, error) | ({} if signature is None else {"provenance": asdict(signature)})
            )
        elif error is not None:
            say(f"bestofn: {error}")
        else:
            typer.echo("\n".join([*_lines(path, story), *_signature(signature)]))
    if json:
        typer.echo(jsonlib.dumps(entries, indent=2))
    if missing:
        raise typer.Exit(1)


def _entry(path: Path, story: Story | OtherStory | None, error: str | None) -> dict[str, Any]:
    match story:
        case Story():
            found = {"story": story.model_dump(mode="json"), "diffusers": diffusers_call(story)}
        case OtherStory(program, texts):
            found = {"program": program, "texts": dict(texts)}
        case None:
            found = {} if error is None else {"error": error}
    return {"path": str(path)} | found


def _lines(path: Path, story: Story | OtherStory | None) -> list[str]:
    match story:
        case None:
            return [f"{path}: no metadata of a generator"]
        case OtherStory(program, texts):
            shown = (f"  {_printable(name)}: {_printable(text[:MAX_SHOWN])}" for name, text in texts.items())
            return [f"{path}: not of bestofn but of {_printable(program)}, which wrote:", *shown]
    verdict, second = story.verdict, story.second_judge
    logits = f"logits yes {_number(verdict.yes_logit)}, no {_number(verdict.no_logit)}"
    facts = {
        "prompt": "(left out)" if story.prompt is None else story.prompt,
        "negative prompt": story.negative_prompt or "",
        "seed": str(story.seed),
        "size": f"{story.width}x{story.height}",
        "steps": f"{story.num_inference_steps}, guidance {story.guidance_scale:g}",
        "layers": ", ".join(map(str, story.layers or ())),
        "model": f"{story.model.name}@{story.model.revision}",
        "judge": f"{story.judge.name}@{story.judge.revision}",
        "second judge": f"{second.name}@{second.revision}" if second else "",
        "verdict": f"{verdict.answer}, p(yes) {_number(verdict.p_yes)}; {logits}; compared by rule {story.rule.value}",
        "software": story.software,
    }
    return [
        f"{path}",
        *(f"  {name:15}  {_printable(text)}" for name, text in facts.items() if text),
        f"  again: bestofn generate {'PROMPT ' * (story.prompt is None)}--reproduce {shlex.quote(str(path))}, or",
        *(f"    {line}".rstrip() for line in diffusers_call(story).splitlines()),
    ]


def _signature(found: Provenance | None) -> list[str]:
    match found:
        case None:
            return []
        case Provenance(state=None):
            text = f"there is a C2PA signature, which is not checked here: {INSTALL}"
        case Provenance(state=state, signer=signer) if state == INVALID:
            text = f"by {signer}, does NOT hold: {', '.join(found.problems)}"
        case Provenance(state=state, signer=signer):
            listed = "" if state == TRUSTED else ", whose issuer is on no trust list here"
            text = f"by {signer}{listed}; holds: the file is as it was signed"
    return [f"  signature        {_printable(text)}"]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _printable(text: str) -> str:
    """Images come from anywhere: nothing in them may command the terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
