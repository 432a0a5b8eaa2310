"""bestofn rank: judge images from anywhere against a prompt."""

import asyncio
import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

import typer

from bestofn.cli.console import check_text, need_packages, say
from bestofn.judge.pairwise import Played, ranking
from bestofn.judge.verdict import Rule, Verdict
from bestofn.service.core.settings import Settings, load_settings
from bestofn.service.pairwise.calls import PREFIX
from bestofn.service.pairwise.openai_judge import VisionJudge

if TYPE_CHECKING:
    from PIL.Image import Image

    from bestofn.judge.calibration import Calibration

EPILOG = """Examples:

`bestofn rank "a red star left of a blue circle" a.png b.png c.png`

`bestofn rank "two hearts" *.png --judge ./NVILA-Lite-2B-Verifier --rule official --json`

`bestofn rank "two hearts" *.png --server http://gpu-host:8000`

`bestofn rank "two hearts" *.png --judge openai:http://localhost:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct`
"""


def rank(
    prompt: Annotated[str, typer.Argument(help="What the images should show.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)],
    judge: Annotated[
        str | None,
        typer.Option(
            help="shapes, a folder, a hub name with @revision, another judge, or openai:ADDRESS#MODEL, which compares.",
            show_default="shapes",
        ),
    ] = None,
    rule: Annotated[Rule | None, typer.Option(help="How verdicts are compared.", show_default="margin")] = None,
    second_judge: Annotated[
        str | None, typer.Option(metavar="JUDGE", help="As --judge, for rule lower_bound, which it implies.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Judge there, on its workers; --judge is then a name that it deploys."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print verdicts, ranks and bracket as JSON.")] = False,
) -> None:
    """Judge images of PROMPT: per image the verdict, both logits, tiles and rank, and the knockout among them.

    The judge runs in this process, or with --server on a server's workers, which do not say the number of tiles.

    A judge openai:ADDRESS#MODEL compares two images at a time, in both orders. If the orders disagree, the image that
    is named earlier goes on. BESTOFN_PAIRWISE_API_KEY is its key. With --rule it judges each image, as an http address
    does, with BESTOFN_JUDGE_API_KEY. Images and PROMPT are sent to its server.
    """
    if not prompt.strip():
        raise typer.BadParameter("the prompt is blank")
    check_text(prompt, "prompt")
    check_images(images)
    if server is not None:
        _report(_judged_there(server, prompt, images, judge, rule, second_judge), json=json)
        return
    settings = load_settings(judge=judge, second_judge=second_judge)
    if settings.judge.startswith(PREFIX) and rule is None and second_judge is None:
        _compare(settings, prompt, images, json=json)
        return
    rule = rule or (Rule.LOWER_BOUND if second_judge else Rule.MARGIN)
    names = [settings.judge]
    if rule is Rule.LOWER_BOUND:
        if not settings.second_judge:
            raise typer.BadParameter("rule lower_bound needs --second-judge")
        names.append(settings.second_judge)
    need_packages("judging needs")

    import torch

    from bestofn.judge.judge import rank_images
    from bestofn.service.engine.judge_loader import calibration_of, find_judge
    from bestofn.service.engine.loader import devices

    device = torch.device(devices(settings)[0])
    checkpoints = [find_judge(name, settings.judge_max_tiles, settings.judge_api_key) for name in names]
    calibrations: list[Calibration | None] = [None]
    if len(names) > 1 or checkpoints[0].name.kind != "vila":  # one NVILA ranks by its logits alone
        files = (settings.calibration, settings.second_calibration)
        calibrations = [calibration_of(*one) for one in zip(checkpoints, files, strict=False)]
    judging, *others = [one.load(device, fitted) for one, fitted in zip(checkpoints, calibrations, strict=True)]
    for name, one in zip(names, (judging, *others), strict=True):
        for word in one.unknown_words(prompt):
            say(f"warning: {name} has never learned the word {word}; it cannot judge what it means")
    batch, second = 1 if device.type == "cpu" else 8, others[0] if others else None
    files_read = ImageFiles(images)
    verdicts, order, bracket = rank_images(judging, prompt, files_read, rule, batch, second, calibrations)
    places = {candidate: place + 1 for place, candidate in enumerate(order)}
    judged: list[dict[str, Any]] = [
        {
            "path": str(path),
            "rank": places[i],
            "verdict": verdicts[i].to_json(),
            "tiles": judging.tiles(*files_read.sizes[i]),
        }
        for i, path in enumerate(images)
    ]
    report = {
        "prompt": prompt,
        "rule": rule.value,
        "judge": checkpoints[0].revision.model_dump(),
        **({"second_judge": checkpoints[1].revision.model_dump()} if others else {}),
        "images": judged,
        "bracket": bracket.to_json()["rounds"],
    }
    _report(report, json=json)


def _judged_there(
    server: str, prompt: str, images: list[Path], judge: str | None, rule: Rule | None, second_judge: str | None
) -> dict[str, Any]:
    """The report of a server's judge: as of this process, without the number of tiles."""
    if second_judge is not None or (judge or "").startswith(PREFIX):
        raise typer.BadParameter("a server has its workers' own judges: leave --second-judge and openai: out")
    from bestofn.cli.progress_bar import JobBar
    from bestofn.service.client.client import Client

    rule = rule or Rule.MARGIN
    with Client(server, load_settings().api_key) as client, JobBar() as bar:
        result = client.rank(prompt, images, judge=judge, rule=rule, on_progress=bar.show)
    for warning in result.warnings:
        say(f"warning: {warning}")
    return {
        "prompt": prompt,
        "rule": rule.value,
        "judge": result.judge.model_dump(),
        **({"second_judge": result.second_judge.model_dump()} if result.second_judge else {}),
        "images": [
            {
                "path": str(images[one.index]),
                "rank": one.rank,
                "verdict": one.verdict.model_dump(mode="json"),
                "tiles": None,
            }
            for one in result.candidates
        ],
        "bracket": [[match.model_dump() for match in matches] for matches in result.bracket],
    }


def _report(report: dict[str, Any], *, json: bool) -> None:
    """Print verdicts, ranks and knockout."""
    if json:
        typer.echo(jsonlib.dumps(report, indent=2))
        return
    typer.echo("rank  answer  p(yes)     yes      no  tiles  image")
    for image in sorted(report["images"], key=lambda image: int(image["rank"])):
        verdict = Verdict.from_json(image["verdict"])
        numbers = f"{verdict.p_yes:6.4f}  {verdict.yes_logit:6.2f}  {verdict.no_logit:6.2f}"
        tiles = "-" if image["tiles"] is None else image["tiles"]
        typer.echo(f"{image['rank']:4}  {verdict.answer:6}  {numbers}  {tiles:>5}  {image['path']}")
    names = [Path(image["path"]).name for image in report["images"]]
    for number, matches in enumerate(report["bracket"], 1):
        played = (
            f"{names[m['a']]} "
            + ("has a bye" if m["b"] is None else "beats" if m["winner"] == m["a"] else "loses to")
            + ("" if m["b"] is None else f" {names[m['b']]}")
            for m in matches
        )
        typer.echo(f"round {number}: {'; '.join(played)}")


def _compare(settings: Settings, prompt: str, images: list[Path], *, json: bool) -> None:
    """The knockout by a judge that sees two images at a time, printed."""
    for _ in ImageFiles(images):  # each is decoded once, so that an error names its file
        pass

    async def play() -> tuple[tuple[Played, ...], ...]:
        async with VisionJudge(settings.judge, settings.pairwise_api_key) as judge:
            return await judge.knockout(prompt, range(len(images)), {i: p.read_bytes() for i, p in enumerate(images)})

    rounds = asyncio.run(play())
    order = ranking(range(len(images)), rounds)
    if json:
        report = {
            "prompt": prompt,
            "judge": settings.judge,
            "images": [{"path": str(path), "rank": order.index(i) + 1} for i, path in enumerate(images)],
            "bracket": [[match.to_json() for match in matches] for matches in rounds],
            "calls": sum(len(match.answers) for matches in rounds for match in matches),
        }
        typer.echo(jsonlib.dumps(report, indent=2))
        return
    typer.echo("rank  image")
    for place, i in enumerate(order, 1):
        typer.echo(f"{place:4}  {images[i]}")
    for number, matches in enumerate(rounds, 1):
        typer.echo(f"round {number}: {'; '.join(_told(match, images) for match in matches)}")


def _told(match: Played, images: list[Path]) -> str:
    a = images[match.a].name
    if match.b is None:
        return f"{a} has a bye"
    first, second = ("neither" if one is None else images[one].name for one in match.answers)
    ending = "a draw" if match.draw else f"{images[match.winner].name} wins"
    return f"{a} - {images[match.b].name}: {first}, then {second}: {ending}"


class ImageFiles(Sequence["Image"]):
    """Images that are decoded whenever they are asked for, so that only the batch in work is in memory.

    Attributes:
        sizes: (width, height) in pixels of the images that have been decoded, by index.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.sizes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> "Image": ...

    @overload
    def __getitem__(self, index: slice) -> list["Image"]: ...

    def __getitem__(self, index: int | slice) -> "Image | list[Image]":
        """The image, or those of a slice. Raises ValueError, naming the file."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        from bestofn.service.media.codec import decode_file

        image = decode_file(self._paths[index])
        self.sizes[index] = image.size
        return image


def check_images(paths: Sequence[Path]) -> None:
    """Look at the header of each file before the judge starts. Raises ValueError, naming the file."""
    from bestofn.service.media.codec import check_file

    for path in paths:
        if warning := check_file(path):
            say(f"warning: {warning}")
