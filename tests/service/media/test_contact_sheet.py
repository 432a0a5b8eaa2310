"""The sheet: its bracket places everyone who played, and it is drawn for any number of candidates."""

import numpy as np
import pytest
from PIL import Image

from bestofn.judge.pairwise import Played
from bestofn.judge.verdict import Verdict
from bestofn.service.core.finals import FinalsOutcome
from bestofn.service.core.jobs import Candidate, HeatOutcome, JobSpec, JobStatus, Revision, Usage
from bestofn.service.core.results import assemble
from bestofn.service.media.contact_sheet.bracket import layout
from bestofn.service.media.contact_sheet.sheet import draw_sheet
from bestofn.service.media.contact_sheet.style import GOLD, MARGIN, WIDTH, length, lines

PIN = Revision(name="shapes", revision="0")


def finished(N, prompt="a photo of a red star left of a blue circle", finals=None):
    spec = JobSpec(
        id="job",
        prompt=prompt,
        num_samples=N,
        seed=2**53,
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=4.0,
        heat_size=max(1, N),
        model=PIN,
        judge=PIN,
    )
    margins = np.random.default_rng(N).normal(size=N)
    verdicts = [Verdict("yes" if margin > 0 else "no", float(margin), 0.0) for margin in margins]
    candidates = tuple(Candidate(i, spec.seed + i, verdict) for i, verdict in enumerate(verdicts))
    result = assemble(spec, JobStatus.SUCCEEDED, [HeatOutcome(0, candidates, {}, Usage())], finals=finals)
    return result, {i: Image.new("RGB", (64, 48), (50 + i % 200, 90, 160)) for i in range(N)}


@pytest.mark.parametrize("N", [1, 2, 3, 5, 8, 13, 32, 64, 70, 200])
def test_a_sheet_of_any_size(N):
    result, thumbnails = finished(N)
    sheet = draw_sheet(result, thumbnails)
    assert sheet.width == WIDTH
    assert 300 < sheet.height < 2700
    golden = (np.asarray(sheet) == GOLD).all(axis=2)
    assert golden.any(), "the winner is framed"


def test_finals_that_choose_another_leave_the_knockout_whole():
    result, thumbnails = finished(8)
    a, b = (min(result.candidates, key=lambda c, rank=rank: abs(c.rank - rank)).index for rank in (1, 2))
    decided, _ = finished(8, finals=FinalsOutcome("m", ((Played(a, b, (b, b), b),),)))
    assert [image.candidate for image in decided.images] == [b]
    heights = [draw_sheet(one, thumbnails).height for one in (result, decided)]
    assert heights[0] == heights[1]
    assert layout(decided.bracket, a).entrants == 8


@pytest.mark.parametrize("N", [2, 3, 5, 8, 31, 32, 33, 64])
def test_the_bracket_places_everyone_once_within_the_page(N):
    result, _ = finished(N)
    winner = result.images[0].candidate
    bracket = layout(result.bracket, winner)
    assert sorted(node.candidate for node in bracket.root.entrants) == list(range(N))
    assert bracket.entrants == N
    boxes = []
    for node in bracket.root.everyone:
        assert node.x - node.side / 2 >= MARGIN - 1
        assert node.x + node.side / 2 <= WIDTH - MARGIN + 1
        assert node.y - node.side / 2 >= -1
        assert node.y + node.side / 2 <= bracket.height + 1
        boxes.append((node.x, node.y, node.side))
    for i, (x, y, side) in enumerate(boxes):
        for other_x, other_y, other_side in boxes[:i]:
            reach = (side + other_side) / 2
            assert abs(x - other_x) >= reach - 1 or abs(y - other_y) >= reach - 1, "two images overlap"
    assert bracket.root.candidate == winner


def test_a_long_knockout_shows_its_last_rounds():
    result, _ = finished(256)
    bracket = layout(result.bracket, result.images[0].candidate)
    assert bracket.entrants == 64


def test_missing_images_and_long_prompts_do_no_harm():
    result, _ = finished(8, prompt="word " * 300 + "x" * 500)
    assert draw_sheet(result, {}).width == WIDTH
    broken = lines("word " * 300, 46, 1400, limit=3)
    assert len(broken) == 3
    assert broken[-1].endswith("…")
    assert all(length(line, 46) <= 1400 for line in broken)


def test_a_job_without_verdicts_has_no_sheet():
    result, _ = finished(4)
    with pytest.raises(ValueError, match="no judged candidates"):
        draw_sheet(result.model_copy(update={"candidates": []}), {})
