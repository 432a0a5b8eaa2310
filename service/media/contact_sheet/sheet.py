"""The page: prompt and facts, the candidates in order of rank, the bracket below."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from bestofn.service.core.schemas import CandidateOut, JobResult
from bestofn.service.media.contact_sheet.bracket import draw_bracket, layout
from bestofn.service.media.contact_sheet.style import (
    CARD,
    FAINT,
    GOLD,
    INK,
    MARGIN,
    MUTED,
    NO,
    OTHER,
    PAPER,
    WIDTH,
    YES,
    length,
    lines,
    paste,
    square,
    text,
)

MAX_TILES = 66  # candidates in the grid; of more, the best are shown
GAP = 14
CAPTION = 34
TITLE = 46
TITLE_LINE = 56
SECTION = 50


def draw_sheet(result: JobResult, thumbnails: Mapping[int, Image.Image]) -> Image.Image:
    """Draws all candidates in order of rank, the winner framed, above the rounds of the knockout.

    Args:
        result: result of a job that has ended, with `candidates` and `bracket` filled.
        thumbnails: images by candidate, of any size; a candidate without one gets an empty card.

    Returns:
        An RGB image 1,600 pixels wide and as tall as it needs to be.

    Raises:
        ValueError: the job has no judged candidate.
    """
    if not result.candidates:
        raise ValueError(f"job {result.id} has no judged candidates to draw (it is {result.status})")
    ranked = sorted(result.candidates, key=lambda candidate: candidate.rank)
    empty = Image.new("RGB", (8, 8), FAINT)
    images = {c.index: thumbnails[c.index].convert("RGB") if c.index in thumbnails else empty for c in ranked}
    shown = ranked[:MAX_TILES]
    columns = _columns(len(shown))
    side = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    title = lines(result.prompt, TITLE, WIDTH - 2 * MARGIN, limit=3)
    # The knockout is that of the verdicts: finals may have chosen another of those close to its winner.
    leader = result.bracket[-1][0].winner if result.bracket else ranked[0].index
    bracket = layout(result.bracket, leader)

    facts_top = MARGIN + 36 + len(title) * TITLE_LINE
    grid_top = facts_top + 66 + SECTION
    grid_bottom = grid_top + math.ceil(len(shown) / columns) * (side + CAPTION + GAP) - GAP
    bracket_top = grid_bottom + 52 + SECTION
    height = (bracket_top + bracket.height if bracket else grid_bottom) + MARGIN

    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    text(pen, (MARGIN, MARGIN), f"BEST OF {len(ranked)}", 20, GOLD, "la", bold=True)
    for i, line in enumerate(title):
        text(pen, (MARGIN, MARGIN + 36 + i * TITLE_LINE), line, TITLE, INK, "la", bold=True)
    text(pen, (MARGIN, facts_top + 8), _facts(result, ranked), 19, MUTED, "la")
    note = "rank, score: the probability of a yes"
    _section(pen, grid_top, "Ranked by the judge", note if len(shown) == len(ranked) else f"the best {len(shown)}")
    for place, candidate in enumerate(shown):
        x = MARGIN + place % columns * (side + GAP)
        y = grid_top + place // columns * (side + CAPTION + GAP)
        _tile(sheet, pen, (x, y), side, candidate, images[candidate.index])
    if bracket is not None:
        hidden = len(ranked) - bracket.entrants
        note = f"the last {bracket.entrants} of {len(ranked)} candidates" if hidden else f"{len(ranked)} candidates"
        _section(pen, bracket_top, "Knockout", note)
        label = "winner" if leader == ranked[0].index else f"best verdict; the finals: {ranked[0].index}"
        draw_bracket(sheet, pen, bracket, bracket_top, images, label)
    return sheet


def _columns(tiles: int) -> int:
    """Few candidates are shown large, and the usual powers of two fill their rows."""
    return next(
        columns for most, columns in ((4, 4), (5, 5), (6, 6), (7, 7), (32, 8), (50, 10), (66, 11)) if tiles <= most
    )


def _facts(result: JobResult, ranked: Sequence[CandidateOut]) -> str:
    best = ranked[0]
    said_yes = sum(candidate.verdict.answer == "yes" for candidate in ranked)
    facts = (
        f"winner: candidate {best.index}, seed {best.seed}",
        f"{said_yes} of {len(ranked)} judged yes",
        f"model {result.model.name}",
        f"judge {result.judge.name}",
    )
    return "   ·   ".join(facts)


def _section(pen: ImageDraw.ImageDraw, top: int, title: str, note: str) -> None:
    text(pen, (MARGIN, top - 32), title, 22, INK, "lm", bold=True)
    text(pen, (MARGIN + length(title, 22) + 18, top - 31), note, 17, MUTED, "lm")


def _tile(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    side: int,
    candidate: CandidateOut,
    image: Image.Image,
) -> None:
    """An image over its rank, seed and score; the bar below is as long as the judge is sure."""
    x, y = at
    right, bottom = x + side - 1, y + side + CAPTION - 1
    winner = candidate.rank == 1
    if winner:
        pen.rounded_rectangle((x - 5, y - 5, right + 5, bottom + 5), 11, fill=GOLD)
    pen.rounded_rectangle((x, y, right, bottom), 7, fill=CARD, outline=None if winner else FAINT)
    paste(sheet, square(image, side), at, radius=7)

    p = candidate.verdict.p_yes
    colour = {"yes": YES, "no": NO}.get(candidate.verdict.answer, OTHER)
    middle = y + side + CAPTION // 2 - 2
    size = 15 if side >= 130 else 13
    text(pen, (x + 9, middle), str(candidate.rank), size, GOLD if winner else INK, "lm", bold=True)
    text(pen, (right - 8, middle), "–" if p is None else f"{p:.3f}", size, colour, "rm", bold=True)
    if side >= 150:
        digits = str(candidate.seed)
        seed = digits if len(digits) <= 8 or side >= 240 else f"…{digits[-6:]}"
        text(pen, (x + side // 2 - 4, middle), f"seed {seed}", 12, MUTED, "mm")
    if p is not None:
        bar = side - 18
        pen.rectangle((x + 9, bottom - 5, x + 8 + bar, bottom - 4), fill=FAINT)
        pen.rectangle((x + 9, bottom - 5, x + 8 + max(2, round(bar * p)), bottom - 4), fill=colour)
