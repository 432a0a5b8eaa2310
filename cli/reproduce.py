"""bestofn generate --reproduce: the story of the image to draw once more, and what is not as it was then."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import typer

from bestofn.cli.commands.inspect import story_of
from bestofn.cli.output import FORMATS
from bestofn.service.core.errors import SetupError
from bestofn.service.core.schemas import JobResult
from bestofn.service.media.metadata import OtherStory, Story


def read(path: Path) -> Story:
    """The story of one of our images.

    Raises:
        SetupError: the file is not an image, or has no metadata of bestofn.
    """
    story, _ = story_of(path)
    if isinstance(story, Story):
        return story
    written = f"is of {story.program}" if isinstance(story, OtherStory) else "has no metadata of a generator"
    raise SetupError(f"{path} {written}: only images that bestofn wrote can be drawn again (see bestofn inspect)")


def check_prompt(story: Story, path: Path, prompt: str | None) -> None:
    """Raises typer.BadParameter if the image leaves its prompt out, and none was given."""
    if prompt is None and story.prompt is None:
        raise typer.BadParameter(
            f"{path} leaves its prompt out: write it before --reproduce, and --negative if it had a negative prompt"
        )


def output_of(path: Path) -> Path:
    """Where it goes unless somebody says so: again.png, in the image's own format."""
    return Path(f"again{path.suffix if path.suffix.lower() in FORMATS else '.png'}")


def check_model_here(story: Story, model: str) -> None:
    """Raises SetupError if this process would draw with another model. A file does not choose what is downloaded."""
    if story.model.checkpoint.name not in (model.partition("@")[0], PurePath(model).name):
        raise SetupError(
            f"the image was drawn by {story.model.name}@{story.model.revision}, but this process would draw with "
            f"{model}: name the model to draw with, such as --model {story.model.name}@{story.model.revision}"
        )


def differences(story: Story, result: JobResult) -> Iterator[str]:
    """What was not as when the image was made, in words."""
    held = (("model", story.model, result.model), ("judge", story.judge, result.judge))
    for kind, then, now in (*held, ("second judge", story.second_judge, result.second_judge)):
        if then is not None and now is not None and then.revision != (now.weights if kind == "model" else now.revision):
            effect = "the image may differ" if kind == "model" else "the verdict may differ, the image does not"
            before, today = (f"{revision.name}@{revision.revision}" for revision in (then, now))
            yield f"the {kind} was {before} and is {today}: {effect}"
    layers = result.parameters.get("layers")
    if list(story.layers or ()) != (layers or []):
        yield f"it was drawn with {_layers(story.layers)} and now with {_layers(layers)}: the image differs"


def _layers(layers: Sequence[int] | None) -> str:
    return "all layers" if layers is None else f"layers {', '.join(map(str, layers))}"
