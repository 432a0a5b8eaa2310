"""The curve of a judge over labelled images: it tells a judge that search fools from one that it does not."""

import numpy as np

from bestofn.evaluation.curve import LabelledCurve


def fields(liked: float, prompts: int = 60, images: int = 66) -> list[list[tuple[float, bool]]]:
    """Right images in half of all cases, judged well; one wrong image in 60 has `liked` added to its log-odds."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(prompts):
        right, rare = rng.random(images) < 0.5, rng.random(images) < 1 / 60
        margin = rng.normal(size=images) + 3 * right + liked * (rare & ~right)
        found.append([(float(m), bool(r)) for m, r in zip(margin, right, strict=True)])
    return found


def test_judge_that_likes_rare_wrong_images_is_found_out() -> None:
    sound, fooled = LabelledCurve.of(fields(0)), LabelledCurve.of(fields(20))
    assert [point.n for point in sound.points] == [1, 2, 4, 8, 16, 32, 64]
    assert (sound.fooled, sound.points[-1].judge) == (False, 1.0)
    assert fooled.fooled
    assert fooled.best < 32
    assert fooled.points[0].judge < fooled.points[2].judge > fooled.points[-1].judge
    *_, said = fooled.lines()
    assert f"Ask for at most {fooled.best} candidates" in said


def test_prompts_with_too_few_images_are_left_out() -> None:
    few = LabelledCurve.of([*fields(0, prompts=5, images=9), [(1.0, True)]])
    assert (few.prompts, few.points[-1].n) == (5, 8)
