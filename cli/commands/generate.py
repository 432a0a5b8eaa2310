"""bestofn generate: the best of N images of a prompt, as a file."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from bestofn.cli import reproduce as remaking
from bestofn.cli.console import check_text, say
from bestofn.cli.output import check_writable, format_of, paths_of, report, write
from bestofn.judge.verdict import Rule
from bestofn.service.core.jobs import Draft, Finals
from bestofn.service.core.settings import load_settings
from bestofn.service.media.metadata import Story
from bestofn.service.media.reproduce import remake_request

EPILOG = """Examples:

`bestofn generate "a photo of a red star left of a blue circle" -n 32 -o best.png`

`bestofn generate "two hearts" -n 64 --top-k 4 --contact-sheet all.png`

`bestofn generate "a ring" --seed 7 --json | jq '.images[0].seed'`

`bestofn generate "a photo of a red star left of a blue circle" -n 256 --stop`

`bestofn generate --reproduce best.png`
"""

CANDIDATES = 16
KEEP, MARGIN = Draft.model_fields["keep"].default, Finals.model_fields["margin"].default


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(f"a size is WIDTHxHEIGHT in pixels, such as 1024x1024, got {text!r}")
    return int(width), int(height)


def _check_numbers(**numbers: float | None) -> None:
    """Raises typer.BadParameter if one is no finite number: JSON has no such thing, and nothing can be done with it."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter(f"--{name} is a number, got {number}")


def _budget(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    for unit, name in (("s", "seconds"), ("tflop", "tflops")):
        number = text.lower().removesuffix(unit)
        if number != text.lower():
            try:
                most = float(number)
            except ValueError:
                break
            if math.isfinite(most) and most > 0:
                return {name: most}
    raise typer.BadParameter(f"a budget is seconds or TFLOPs, such as 30s or 500TFLOP, got {text!r}")


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the image should show; needed without --reproduce.", show_default=False)
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--num-samples",
            min=1,
            help="Candidates to draw and judge.",
            show_default=f"{CANDIDATES}; with --reproduce 1",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The winner's file: .png, .webp or .jpg.",
            show_default="best.png; with --reproduce again.png",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=16, help="Winners to keep: best-1.png, best-2.png, ...")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of candidate 0; candidate i has seed + i.", show_default="random")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale.", show_default="the model's")] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="LAYERS", help="Number of layers to run, the most important ones.", show_default="all"
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels, such as 1024x1024.", show_default="the model's")
    ] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What the image should not show.")] = None,
    rule: Annotated[Rule | None, typer.Option(help="How verdicts are compared.", show_default="margin")] = None,
    draft: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="STEPS", help="Draw all in so few steps, and only the best in full.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="With --draft: the share that is drawn in full.", show_default=str(KEEP)),
    ] = None,
    draft_depth: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="LAYERS", help="With --draft: the same as --depth, for drafts.", show_default=False
        ),
    ] = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="End once the best is probably right, or the prompt seems hopeless.")
    ] = False,
    confidence: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Probability at which --stop is sure enough. Implies --stop.",
            show_default="0.97 of the most that the judge can reach",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Candidates without a yes after which --stop gives up. Implies --stop.",
            show_default="64",
        ),
    ] = None,
    effort: Annotated[
        str | None, typer.Option(metavar="NAME", help="low, medium, high or max, instead of -n, --draft and --stop.")
    ] = None,
    finals: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=16,
            metavar="NUMBER",
            help="Finals among at most this many leaders, by the pairwise judge.",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0, help="With --finals: maximum distance to the leader, in log-odds.", show_default=str(MARGIN)
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="X", help="What it may cost on average, such as 30s or 500TFLOP, instead of -n, --draft and --stop."
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Take the best that there is after so long.", show_default=False),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(metavar="PICTURE", help="Draw an image of bestofn once more; other options change how."),
    ] = None,
    embed_prompt: Annotated[
        bool | None,
        typer.Option(help="Write the prompt into the winners' files.", show_default="embed-prompt"),
    ] = None,
    server: Annotated[str | None, typer.Option(metavar="URL", help="Use this server.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Draw in this process, without server or queue.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="A name that the server deploys; in this process shapes, a folder or a hub name@revision."),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="As --model, for the judge.")] = None,
    second_judge: Annotated[
        str | None,
        typer.Option(metavar="JUDGE", help="In this process: shapes, a folder or a hub name. Implies lower_bound."),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write one image of all candidates, ranked, here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
) -> None:
    """Draw N candidates of PROMPT, judge them, write the best.

    Uses --server or BESTOFN_SERVER, else a running `bestofn up`, else draws in this process. Ctrl-C cancels the job.
    """
    if server is not None and local:
        raise typer.BadParameter("--server and --local exclude each other")
    if prompt is None and again is None:
        raise typer.BadParameter("write a prompt, or --reproduce PICTURE to draw an image once more")
    check_text(prompt or "", "prompt")
    check_text(negative or "", "negative prompt")
    if draft_depth is not None and draft is None:
        raise typer.BadParameter("--draft-depth goes with --draft STEPS")
    if keep is not None and draft is None:
        raise typer.BadParameter("--keep goes with --draft STEPS")
    if margin is not None and finals is None:
        raise typer.BadParameter("--finals-margin goes with --finals MOST")
    _check_numbers(guidance=guidance, keep=keep, confidence=confidence, margin=margin, deadline=deadline)
    dimensions = _size(size)
    story: Story | None = None
    base: dict[str, Any] = {} if effort or budget else {"num_samples": CANDIDATES}
    if again is not None:
        story = remaking.read(again)
        remaking.check_prompt(story, again, prompt)
        base = remake_request(story)
        output = output or remaking.output_of(again)
    output = output or Path("best.png")
    limits = {name: value for name, value in (("confidence", confidence), ("patience", patience)) if value is not None}
    fields: dict[str, Any] = {
        "prompt": prompt,
        "num_samples": num_samples,
        "top_k": top_k,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "negative_prompt": negative,
        "width": dimensions and dimensions[0],
        "height": dimensions and dimensions[1],
        "rule": rule or (Rule.LOWER_BOUND if second_judge else None),
        "deadline_seconds": deadline,
        "depth": depth,
        "draft": draft and {"num_inference_steps": draft, "keep": KEEP if keep is None else keep, "depth": draft_depth},
        "stop": limits if stop or limits else None,
        "effort": effort,
        "budget": _budget(budget),
        "finals": finals and {"max_entrants": finals, "margin": MARGIN if margin is None else margin},
        "embed_prompt": embed_prompt,
        "format": format_of(output),
        "thumbnails": sheet is not None,
    }
    request = base | {name: value for name, value in fields.items() if value is not None}
    if sheet is not None:
        format_of(sheet)
    check_writable(*paths_of(output, top_k), sheet)

    from bestofn.cli import server_choice as target

    settings = load_settings(server=server)
    address = target.choose(settings, local=local)
    if address is not None:
        from bestofn.cli.run_remote import generate as draw

        if second_judge is not None:
            raise typer.BadParameter("--second-judge is for --local; a server has its workers' own: --rule lower_bound")
        say(f"using the server at {address}")
        names = {"model": model, "judge": judge}
        request |= {name: value for name, value in names.items() if value is not None}
        outcome = draw(request, address, settings)
    else:
        from bestofn.cli.run_local import generate as draw_here

        say("drawing in this process" if local else "no server is running: drawing in this process")
        settings = load_settings(model=model, judge=judge, second_judge=second_judge)
        if story is not None and model is None:
            remaking.check_model_here(story, settings.model)
        outcome = draw_here(request, settings)
    if story is not None:
        for difference in remaking.differences(story, outcome.result):
            say(f"warning: {difference}")
    report(write(outcome, output, sheet), sheet, json=json)


def add_to(program: typer.Typer) -> None:
    program.command(epilog=EPILOG)(generate)
