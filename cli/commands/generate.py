"""bestofn generate: the best of N images of a prompt as a file, or an image drawn once more."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer

from bestofn.cli import generate_options as options
from bestofn.cli.commands.inspect import story_of
from bestofn.cli.console import check_text, say
from bestofn.cli.output import FORMATS, check_writable, format_of, paths_of, report, write
from bestofn.judge.verdict import Rule
from bestofn.service.core.errors import SetupError
from bestofn.service.core.schemas import JobResult
from bestofn.service.core.settings import Settings, load_settings
from bestofn.service.media.metadata import OtherStory, Story
from bestofn.service.media.reproduce import is_commit, remake_request

EPILOG = """Examples:

`bestofn generate "a photo of a red star left of a blue circle" -n 32 -o best.png`

`bestofn generate "two hearts" -n 64 --top-k 4 --contact-sheet all.png`

`bestofn generate "a ring" --seed 7 --json | jq '.images[0].seed'`

`bestofn generate "a photo of a red star left of a blue circle" -n 256 --stop`

`bestofn generate --reproduce best.png`
"""


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the image should show; needed without --reproduce.", show_default=False)
    ] = None,
    num_samples: options.NumSamples = None,
    output: options.Output = None,
    top_k: options.TopK = 1,
    seed: options.Seed = None,
    sheet: options.ContactSheet = None,
    json: options.Json = False,
    effort: options.EffortName = None,
    budget: options.BudgetText = None,
    stop: options.StopEarly = False,
    confidence: options.Confidence = None,
    patience: options.Patience = None,
    draft: options.DraftSteps = None,
    keep: options.Keep = None,
    draft_depth: options.DraftDepth = None,
    finals: options.FinalsNumber = None,
    margin: options.FinalsMargin = None,
    rule: options.RankRule = None,
    deadline: options.Deadline = None,
    size: options.Size = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative: options.Negative = None,
    depth: options.Depth = None,
    reproduce: options.Reproduce = None,
    embed_prompt: options.EmbedPrompt = None,
    server: options.Server = None,
    local: options.Local = False,
    model: options.ModelName = None,
    judge: options.JudgeName = None,
    second_judge: options.SecondJudge = None,
) -> None:
    """Draw N candidates of PROMPT, judge them, write the best.

    Uses --server or BESTOFN_SERVER, else a running `bestofn up`, else draws in this process. Ctrl-C cancels the job.
    """
    if server is not None and local:
        raise typer.BadParameter("--server and --local exclude each other")
    if prompt is None and reproduce is None:
        raise typer.BadParameter("write a prompt, or --reproduce IMAGE to draw an image again")
    check_text(prompt or "", "prompt")
    check_text(negative or "", "negative prompt")
    options.check_depends("draft", draft, draft_depth=draft_depth, keep=keep)
    options.check_depends("finals", finals, finals_margin=margin)
    options.check_finite(
        guidance=guidance, keep=keep, confidence=confidence, **{"finals-margin": margin}, deadline=deadline
    )
    width, height = options.read_size(size)
    story: Story | None = None
    base: dict[str, Any] = {} if effort or budget else {"num_samples": options.CANDIDATES}
    if reproduce is not None:
        story = _read(reproduce)
        if prompt is None and story.prompt is None:
            left_out = f"{reproduce} leaves its prompt out: write it before --reproduce"
            raise typer.BadParameter(f"{left_out}, and --negative if it had a negative prompt")
        base = remake_request(story)
        output = output or Path(f"again{reproduce.suffix if reproduce.suffix.lower() in FORMATS else '.png'}")
    output = output or Path("best.png")
    fields: dict[str, Any] = {
        "prompt": prompt,
        "num_samples": num_samples,
        "top_k": top_k,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "rule": rule or (Rule.LOWER_BOUND if second_judge else None),
        "deadline_seconds": deadline,
        "depth": depth,
        "draft": options.draft_of(draft, keep, draft_depth),
        "stop": options.stop_of(stop, confidence, patience),
        "effort": effort,
        "budget": options.read_budget(budget),
        "finals": options.finals_of(finals, margin),
        "embed_prompt": embed_prompt,
        "format": format_of(output),
        "thumbnails": sheet is not None,
    }
    request = base | {name: value for name, value in fields.items() if value is not None}
    if sheet is not None:
        format_of(sheet)
    check_writable(*paths_of(output, top_k), sheet)

    from bestofn.cli.drawing import choose, draw_here, draw_there

    settings = load_settings(server=server)
    address = choose(settings, local=local)
    if address is not None:
        if second_judge is not None:
            raise typer.BadParameter("--second-judge is for --local; a server has its workers' own: --rule lower_bound")
        say(f"using the server at {address}")
        names = {"model": model, "judge": judge}
        request |= {name: value for name, value in names.items() if value is not None}
        outcome = draw_there(request, address, settings)
    else:
        say("drawing in this process" if local else "no server is running: drawing in this process")
        settings = load_settings(model=model, judge=judge, second_judge=second_judge)
        if story is not None and model is None:
            _check_model_here(story, settings.model)
        outcome = draw_here(request, settings)
    if story is not None:
        for difference in _differences(story, outcome.result):
            say(f"warning: {difference}")
    report(write(outcome, output, sheet), sheet, json=json)


def _read(path: Path) -> Story:
    """The story of one of our images.

    Raises:
        SetupError: the file is not an image, or has no metadata of bestofn.
    """
    story, _ = story_of(path)
    if isinstance(story, Story):
        return story
    written = f"is of {story.program}" if isinstance(story, OtherStory) else "has no metadata of a generator"
    raise SetupError(f"{path} {written}: only images that bestofn wrote can be drawn again (see bestofn inspect)")


def _check_model_here(story: Story, model: str) -> None:
    """Raises SetupError if this process would draw with another model. A file does not choose what is downloaded."""
    drawn = story.model.checkpoint
    if drawn.name not in (model.partition("@")[0], PurePath(model).name):
        # A folder is found by its path alone, which is not written into images.
        named = drawn.name if drawn.name == Settings.model_fields["model"].default else f"PATH/{drawn.name}"
        raise SetupError(
            f"the image was drawn by {story.model.name}@{story.model.revision}, but this process would draw with "
            f"{model}: name the model to draw with, such as "
            f"--model {f'{drawn.name}@{drawn.revision}' if is_commit(drawn.revision) else named}"
        )


def _differences(story: Story, result: JobResult) -> Iterator[str]:
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
