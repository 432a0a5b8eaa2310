"""Options of `bestofn generate`, grouped into the panels of its help, and the request that they make."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from bestofn.judge.verdict import Rule
from bestofn.service.core.jobs import Draft, Finals

CANDIDATES = 16
KEEP, MARGIN = Draft.model_fields["keep"].default, Finals.model_fields["margin"].default

SEARCH, IMAGE, PLACE = "Search strategy", "Image", "Where it runs"

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
    typer.Option(
        "--effort",
        metavar="NAME",
        help="low, medium, high or max, in place of -n, --draft and --stop.",
        rich_help_panel=SEARCH,
    ),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="COST",
        help="Average cost, such as 30s or 500TFLOP, in place of -n, --draft and --stop.",
        rich_help_panel=SEARCH,
    ),
]
StopEarly = Annotated[
    bool,
    typer.Option(
        "--stop",
        help="Stop once the best is probably right, or after many candidates without a yes.",
        rich_help_panel=SEARCH,
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        "--confidence",
        metavar="P",
        help="Probability at which --stop ends the job. Implies --stop.",
        show_default="0.97 of the judge's greatest probability",
        rich_help_panel=SEARCH,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        "--patience",
        min=1,
        metavar="NUMBER",
        help="Candidates without a yes after which --stop ends the job. Implies --stop.",
        show_default="64",
        rich_help_panel=SEARCH,
    ),
]
DraftSteps = Annotated[
    int | None,
    typer.Option(
        "--draft",
        min=1,
        metavar="STEPS",
        help="Draft all candidates in this few steps; solve only the best in full.",
        show_default=False,
        rich_help_panel=SEARCH,
    ),
]
Keep = Annotated[
    float | None,
    typer.Option(
        "--keep",
        metavar="SHARE",
        help="With --draft: share that is solved in full.",
        show_default=str(KEEP),
        rich_help_panel=SEARCH,
    ),
]
DraftDepth = Annotated[
    int | None,
    typer.Option(
        "--draft-depth",
        min=1,
        metavar="LAYERS",
        help="With --draft: --depth of the drafts.",
        show_default=False,
        rich_help_panel=SEARCH,
    ),
]
FinalsNumber = Annotated[
    int | None,
    typer.Option(
        "--finals",
        min=2,
        max=16,
        metavar="NUMBER",
        help="Finals among at most this many leaders, by the pairwise judge.",
        rich_help_panel=SEARCH,
    ),
]
FinalsMargin = Annotated[
    float | None,
    typer.Option(
        "--finals-margin",
        min=0,
        metavar="LOG-ODDS",
        help="With --finals: maximum distance to the leader.",
        show_default=str(MARGIN),
        rich_help_panel=SEARCH,
    ),
]
RankRule = Annotated[
    Rule | None,
    typer.Option("--rule", help="Ranking rule.", show_default="margin", rich_help_panel=SEARCH),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        metavar="SECONDS",
        help="Return the best candidate so far after this time.",
        show_default=False,
        rich_help_panel=SEARCH,
    ),
]

Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        help="Size in pixels, such as 1024x1024.",
        show_default="the model's",
        rich_help_panel=IMAGE,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Denoising steps.", show_default="the model's", rich_help_panel=IMAGE),
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", min=0, help="Guidance scale.", show_default="the model's", rich_help_panel=IMAGE),
]
Negative = Annotated[
    str | None,
    typer.Option("--negative", metavar="TEXT", help="What the image should not show.", rich_help_panel=IMAGE),
]
Depth = Annotated[
    int | None,
    typer.Option(
        "--depth",
        min=1,
        metavar="LAYERS",
        help="Run only the most important layers.",
        show_default="all",
        rich_help_panel=IMAGE,
    ),
]
Reproduce = Annotated[
    Path | None,
    typer.Option(
        "--reproduce",
        metavar="IMAGE",
        help="Draw an image of bestofn again; other options change how.",
        rich_help_panel=IMAGE,
    ),
]
EmbedPrompt = Annotated[
    bool | None,
    typer.Option(
        "--embed-prompt/--no-embed-prompt",
        help="Write the prompt into the winners' files.",
        show_default="embed-prompt",
        rich_help_panel=IMAGE,
    ),
]

Server = Annotated[str | None, typer.Option("--server", metavar="URL", help="Use this server.", rich_help_panel=PLACE)]
Local = Annotated[
    bool,
    typer.Option("--local", help="Draw in this process, without server or queue.", rich_help_panel=PLACE),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A name that the server deploys. In this process: shapes, a folder or a hub name@revision.",
        rich_help_panel=PLACE,
    ),
]
JudgeName = Annotated[str | None, typer.Option("--judge", help="As --model, for the judge.", rich_help_panel=PLACE)]
SecondJudge = Annotated[
    str | None,
    typer.Option(
        "--second-judge",
        metavar="JUDGE",
        help="In this process: shapes, a folder or a hub name. Implies lower_bound.",
        rich_help_panel=PLACE,
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
