"""bestofn generate: the best of N pictures of a prompt, as a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bestofn.judge.verdict import Rule
from bestofn.service.cli.console import say
from bestofn.service.cli.outcome import check_writable, format_of, report, write
from bestofn.service.settings import load_settings

EPILOG = """Examples:

`bestofn generate "a photo of a red star left of a blue circle" -n 32 -o best.png`

`bestofn generate "two hearts" -n 64 --top-k 4 --sheet all.png`

`bestofn generate "a ring" --seed 7 --json | jq .images[0].seed`
"""


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(f"a size is WIDTHxHEIGHT in pixels, such as 1024x1024, got {text!r}")
    return int(width), int(height)


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture should show.", show_default=False)],
    num_samples: Annotated[int, typer.Option("-n", "--num-samples", min=1, help="Candidates to draw and judge.")] = 16,
    output: Annotated[Path, typer.Option("-o", "--output", help="The winner's file: .png, .webp or .jpg.")] = Path(
        "best.png"
    ),
    top_k: Annotated[int, typer.Option(min=1, max=16, help="Winners to keep: best-1.png, best-2.png, ...")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of candidate 0; candidate i has seed + i.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, such as 1024x1024.")] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What the picture should not show.")] = None,
    rule: Annotated[Rule, typer.Option(help="How verdicts are compared.")] = Rule.MARGIN,
    server: Annotated[str | None, typer.Option(metavar="URL", help="Use this server.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Draw in this process, without server or queue.")] = False,
    model: Annotated[
        str | None, typer.Option(help="A name the server deploys; with --local shapes, a folder or a hub name.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="As --model, for the judge.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write one picture of all candidates, ranked, here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
) -> None:
    """Draw N candidates of PROMPT, judge them, write the best.

    Uses --server or BESTOFN_SERVER, else a running `bestofn up`, else draws in this process. Ctrl-C cancels the job.
    """
    if server is not None and local:
        raise typer.BadParameter("--server and --local exclude each other")
    dimensions = _size(size)
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
        "rule": rule.value,
        "format": format_of(output),
        "thumbnails": sheet is not None,
    }
    request = {name: value for name, value in fields.items() if value is not None}
    check_writable(output, sheet)
    if sheet is not None:
        format_of(sheet)

    from bestofn.service.cli import target

    settings = load_settings(server=server)
    address = target.choose(settings, local=local)
    if address is not None:
        from bestofn.service.cli.remote import generate as draw

        say(f"using the server at {address}")
        names = {"model": model, "judge": judge}
        request |= {name: value for name, value in names.items() if value is not None}
        outcome = draw(request, address, settings)
    else:
        from bestofn.service.cli.here import generate as draw_here

        say("drawing in this process" if local else "no server is running: drawing in this process")
        outcome = draw_here(request, load_settings(model=model, judge=judge))
    report(write(outcome, output, sheet), sheet, json=json)


def add_to(program: typer.Typer) -> None:
    program.command(epilog=EPILOG)(generate)
