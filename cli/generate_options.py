"""Options of `bestofn generate`, grouped into the panels of its help, and the request that they make."""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bestofn.judge.verdict import Rule
from bestofn.service.core.jobs import Draft, Finals

CANDIDATES = 16
KEEP, MARGIN = Draft.model_fields["keep"].default, Finals.model_fields["margin"].default

# An option of each panel.
_search, _image, _place = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("Search strategy", "Image", "Where it runs")
)

# The most used options, without a panel of their own.
NumSamples = Annotated[
    int | None,
    typer.Option(
        "-n",
        "--num-samples",
        min=1,
        help="Number of candidates to draw and judge.",
        show_default=f"{CANDIDATES}; with --reproduce 1",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="File of the winner: .png, .webp or .jpg.",
        show_default="best.png; with --reproduce again.png",
    ),
]
TopK = Annotated[int, typer.Option(min=1, max=16, help="Number of winners: best-1.png, best-2.png, ...")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed of candidate 0; candidate i has seed + i.", show_default="random")
]
ContactSheet = Annotated[
    Path | None, typer.Option("--contact-sheet", metavar="FILE", help="Write one image of all candidates, ranked.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")]

EffortName = Annotated[
    str | None,
    _search("--effort", metavar="NAME", help="low, medium, high or max, in place of -n, --draft and --stop."),
]
BudgetText = Annotated[
    str | None,
    _search(
        "--budget", metavar="COST", help="Average cost, such as 30s or 500TFLOP, in place of -n, --draft and --stop."
    ),
]
StopEarly = Annotated[
    bool, _search("--stop", help="Stop once the best is probably right, or after many candidates without a yes.")
]
Confidence = Annotated[
    float | None,
    _search(
        "--confidence",
        metavar="P",
        help="Probability at which --stop ends the job. Implies --stop.",
        show_default="0.97 of the judge's greatest probability",
    ),
]
Patience = Annotated[
    int | None,
    _search(
        "--patience",
        min=1,
        metavar="NUMBER",
        help="Candidates without a yes after which --stop ends the job. Implies --stop.",
        show_default="64",
    ),
]
DraftSteps = Annotated[
    int | None,
    _search(
        "--draft",
        min=1,
        metavar="STEPS",
        help="Draft all candidates in this few steps; solve only the best in full.",
        show_default=False,
    ),
]
Keep = Annotated[
    float | None,
    _search("--keep", metavar="SHARE", help="With --draft: share that is solved in full.", show_default=str(KEEP)),
]
DraftDepth = Annotated[
    int | None,
    _search("--draft-depth", min=1, metavar="LAYERS", help="With --draft: --depth of the drafts.", show_default=False),
]
FinalsNumber = Annotated[
    int | None,
    _search(
        "--finals",
        min=2,
        max=16,
        metavar="NUMBER",
        help="Finals among at most this many leaders, by the pairwise judge.",
    ),
]
FinalsMargin = Annotated[
    float | None,
    _search(
        "--finals-margin",
        min=0,
        metavar="LOG-ODDS",
        help="With --finals: maximum distance to the leader.",
        show_default=str(MARGIN),
    ),
]
RankRule = Annotated[Rule | None, _search("--rule", help="Ranking rule.", show_default="margin")]
Deadline = Annotated[
    float | None,
    _search(
        "--deadline", metavar="SECONDS", help="Return the best candidate so far after this time.", show_default=False
    ),
]

Size = Annotated[
    str | None, _image("--size", metavar="WxH", help="Size in pixels, such as 1024x1024.", show_default="the model's")
]
Steps = Annotated[int | None, _image("--steps", min=1, help="Denoising steps.", show_default="the model's")]
Guidance = Annotated[float | None, _image("--guidance", min=0, help="Guidance scale.", show_default="the model's")]
Negative = Annotated[str | None, _image("--negative", metavar="TEXT", help="What the image should not show.")]
Depth = Annotated[
    int | None,
    _image("--depth", min=1, metavar="LAYERS", help="Run only the most important layers.", show_default="all"),
]
Reproduce = Annotated[
    Path | None,
    _image("--reproduce", metavar="IMAGE", help="Draw an image of bestofn again; other options change how."),
]
EmbedPrompt = Annotated[
    bool | None,
    _image(
        "--embed-prompt/--no-embed-prompt",
        help="Write the prompt into the winners' files.",
        show_default="where they are not signed",
    ),
]

Server = Annotated[str | None, _place("--server", metavar="URL", help="Use this server.")]
Local = Annotated[bool, _place("--local", help="Draw in this process, without server or queue.")]
ModelName = Annotated[
    str | None,
    _place("--model", help="A name that the server deploys. In this process: shapes, a folder or a hub name@revision."),
]
JudgeName = Annotated[str | None, _place("--judge", help="As --model, for the judge.")]
SecondJudge = Annotated[
    str | None,
    _place(
        "--second-judge", metavar="JUDGE", help="In this process: shapes, a folder or a hub name. Implies lower_bound."
    ),
]


def read_size(text: str | None) -> tuple[int | None, int | None]:
    """Width and height of WIDTHxHEIGHT; (None, None) if `text` is None. Raises typer.BadParameter."""
    if text is None:
        return None, None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(f"--size must be WIDTHxHEIGHT in pixels, such as 1024x1024, got {text!r}")
    return int(width), int(height)


def read_budget(text: str | None) -> dict[str, float] | None:
    """The request's budget. Raises typer.BadParameter."""
    if text is None:
        return None
    for unit, name in (("s", "seconds"), ("tflop", "tflops")):
        number = text.lower().removesuffix(unit)
        if number != text.lower():
            try:
                cost = float(number)
            except ValueError:
                break
            if math.isfinite(cost) and cost > 0:
                return {name: cost}
    raise typer.BadParameter(f"--budget must be seconds or TFLOPs, such as 30s or 500TFLOP, got {text!r}")


def check_finite(**numbers: float | None) -> None:
    """Raise typer.BadParameter if a number is not finite: JSON cannot hold it."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter(f"--{name} must be a finite number, got {number}")


def check_depends(base: str, base_value: object, **dependent: object) -> None:
    """Raise typer.BadParameter if a dependent option is set without its base option."""
    for name, value in dependent.items():
        if value is not None and base_value is None:
            raise typer.BadParameter(f"--{name.replace('_', '-')} needs --{base}")


def draft_of(steps: int | None, keep: float | None, depth: int | None) -> dict[str, Any] | None:
    """The request's draft."""
    if steps is None:
        return None
    return {"num_inference_steps": steps, "keep": KEEP if keep is None else keep, "depth": depth}


def stop_of(stop: bool, confidence: float | None, patience: int | None) -> dict[str, Any] | None:
    """The request's stopping rule."""
    limits = {name: value for name, value in (("confidence", confidence), ("patience", patience)) if value is not None}
    return limits if stop or limits else None


def finals_of(number: int | None, margin: float | None) -> dict[str, Any] | None:
    """The request's finals."""
    return None if number is None else {"max_entrants": number, "margin": MARGIN if margin is None else margin}
