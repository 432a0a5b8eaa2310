"""The start-up test of a judge: a drawn image that shows its prompt must score above one that does not."""

from PIL import Image, ImageDraw

from bestofn.judge.interface import PointwiseJudge
from bestofn.judge.verdict import Verdict

PROMPT = "a photo of a red circle"
SIDE = 256  # pixels


def self_test(judge: PointwiseJudge, *, ordered: bool = True) -> str | None:
    """What is wrong with a judge's answers about a red circle and a blue square; None: nothing.

    A template that does not fit a model gives both one score, or words other than yes and no.

    Args:
        judge: just loaded.
        ordered: the circle must win; without it, both need a verdict alone.
    """
    right, wrong = (
        judge.answer(row)
        for image in (_drawn("red", circle=True), _drawn("blue"))
        for row in judge.ask([image], [PROMPT])
    )
    scores = f"a red circle gets {_score(right)} and a blue square {_score(wrong)} for the prompt {PROMPT!r}"
    if right.broken or wrong.broken:
        return f"{scores}: it gives no verdict"
    if not ordered:
        return None
    if right.answer == "other":
        return f"{scores}, and its likeliest first word is neither yes nor no"
    if right.margin <= wrong.margin:
        return f"{scores}: the first must be greater"
    return None


def _score(verdict: Verdict) -> str:
    return "none" if verdict.broken else f"{verdict.margin:.3f}"


def _drawn(colour: str, *, circle: bool = False) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    shape = draw.ellipse if circle else draw.rectangle
    shape((SIDE // 4, SIDE // 4, 3 * SIDE // 4, 3 * SIDE // 4), fill=colour)
    return image
