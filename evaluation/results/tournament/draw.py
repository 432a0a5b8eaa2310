"""Draws the images of docs/guide/tournament.md from real jobs of the shapes model: `python
evaluation/results/tournament/draw.py`.

tournament.png  16 candidates of one prompt, ranked, with their knockout
verdicts.png    what the judge said and what the exact evaluator says: right and wrong, four of each
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.shapes.prompts import benchmark_prompts
from bestofn.service.core.schemas import CandidateOut, GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.engine.engine import Engine
from bestofn.service.engine.loader import load_engine
from bestofn.service.media.codec import decode
from bestofn.service.media.contact_sheet import style
from bestofn.service.media.contact_sheet.sheet import draw_sheet
from bestofn.service.worker.local import LocalRun, local_spec, run_local

IMAGES = Path(__file__).resolve().parents[3] / "docs" / "images"
SIDE, GAP, ROW = 200, 22, 330
COLOURS = 192  # palette of the files; few colours keep them small
QUARTERS = {
    (True, True): "Judged yes, and right",
    (False, False): "Judged no, and wrong",
    (True, False): "Judged yes, but wrong: what it does not see",
    (False, True): "Judged no, but right: what it does not believe",
}


def main() -> None:
    """Write both images of docs/guide/tournament.md."""
    settings = Settings(redis_url=None)
    engine = load_engine(settings)
    run = job(engine, settings, "a photo of a star and a heart", 16, seed=21)
    sheet = draw_sheet(run.result, {i: decode(data) for i, data in run.thumbnails.items()})
    for image, name in ((sheet, "tournament.png"), (verdicts(engine, settings), "verdicts.png")):
        image.quantize(COLOURS).save(IMAGES / name, optimize=True)


def job(engine: Engine, settings: Settings, prompt: str, count: int, seed: int) -> LocalRun:
    """A job in this process with a small lossless image of every candidate."""
    request = GenerateRequest(
        prompt=prompt, num_samples=count, top_k=min(count, 16), seed=seed, thumbnails=True, embed_prompt=False
    )
    return run_local(local_spec(request, engine, settings), engine)


def verdicts(engine: Engine, settings: Settings) -> Image.Image:
    """The four quarters; of each, candidates of different prompts, the ones that the judge was surest of."""
    found: dict[tuple[bool, bool], dict[str, tuple[CandidateOut, Image.Image, str]]] = {key: {} for key in QUARTERS}
    for number, entry in enumerate(benchmark_prompts()[::6]):
        run = job(engine, settings, entry.spec.prompt, 12, seed=1000 * number)
        for candidate in run.result.candidates:
            image = decode(run.images[candidate.index])
            judged = evaluate(np.asarray(image), entry.spec)
            quarter = found[candidate.verdict.answer == "yes", judged.correct]
            best = quarter.get(entry.spec.prompt)
            if best is None or sure(candidate) > sure(best[0]):
                quarter[entry.spec.prompt] = (candidate, image, judged.reason or "all of it is there")
    width = style.MARGIN * 2 + 4 * SIDE + 3 * GAP
    sheet = Image.new("RGB", (2 * width - style.MARGIN, 2 * (ROW + 70) + style.MARGIN), style.PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (key, title) in enumerate(QUARTERS.items()):
        left = style.MARGIN + place % 2 * (width - style.MARGIN)
        top = style.MARGIN // 2 + place // 2 * (ROW + 70)
        style.text(pen, (left, top), title, 24, style.INK, "la", bold=True)
        shown = sorted(found[key].items(), key=lambda item: -sure(item[1][0]))[:4]
        for column, (prompt, (candidate, image, reason)) in enumerate(shown):
            x, y = left + column * (SIDE + GAP), top + 44
            style.paste(sheet, image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y), radius=8)
            verdict = candidate.verdict
            colour = style.YES if verdict.answer == "yes" else style.NO
            score = f"{verdict.answer}, {verdict.yes_logit:.1f} to {verdict.no_logit:.1f}"
            style.text(pen, (x, y + SIDE + 10), score, 17, colour, "la", bold=True)
            words = [*style.lines(prompt.removeprefix("a photo of "), 15, SIDE, 2), *style.lines(reason, 14, SIDE, 2)]
            for i, line in enumerate(words):
                ink = style.INK if i < len(words) - len(style.lines(reason, 14, SIDE, 2)) else style.MUTED
                style.text(pen, (x, y + SIDE + 36 + 20 * i), line, 15, ink, "la")
    return sheet


def sure(candidate: CandidateOut) -> float:
    """How far apart the judge's two logits are."""
    verdict = candidate.verdict
    return abs((verdict.yes_logit or 0.0) - (verdict.no_logit or 0.0))


if __name__ == "__main__":
    main()
