"""Image pools: drawn once, resumed by job, refused for other settings; mining keeps the hard images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bestofn.models.generator import Generator
from bestofn.models.shapes.prompts import single
from bestofn.training.judge.image_pool import DrawJob, draw_job, fill_pool
from bestofn.training.judge.mining import hard_images

JOBS = [DrawJob.one_prompt(single(shape), 10 * k, 2, 2) for k, shape in enumerate(("star", "ring", "heart"))]


@pytest.fixture(scope="module")
def generator() -> Generator:
    """The embedded generator, eager and in float32."""
    return Generator.load("shapes")


def test_a_pool_is_drawn_once_and_resumed_by_job(tmp_path: Path, generator: Generator) -> None:
    loaded: list[Generator] = []
    done: list[tuple[int, int]] = []

    def load() -> Generator:
        loaded.append(generator)
        return generator

    first = fill_pool(tmp_path, JOBS, {"steps": 2}, load, lambda *counts: done.append(counts))
    (tmp_path / "00001.npz").unlink()
    second = fill_pool(tmp_path, JOBS, {"steps": 2}, load, lambda *counts: done.append(counts))
    third = fill_pool(tmp_path, JOBS, {"steps": 2}, load, lambda *counts: None)
    assert len(loaded) == 2
    assert done == [(1, 3), (2, 3), (3, 3)] * 2
    for a, b, c in zip(first, second, third, strict=True):
        assert np.array_equal(a.images, b.images)
        assert np.array_equal(a.images, c.images)
        assert a.specs == b.specs == c.specs
    assert np.array_equal(first[1].of([1]).images, first[1].images[1:])
    with pytest.raises(ValueError, match="was filled with steps 2, not 3: choose another --run"):
        fill_pool(tmp_path, JOBS, {"steps": 3}, load, lambda *counts: None)
    assert not list(tmp_path.glob("*.part"))


def test_an_image_depends_on_its_prompt_and_seed_alone(generator: Generator) -> None:
    star, ring = single("star"), single("ring")
    together = draw_job(generator, DrawJob((star, star, ring), (3, 4, 5), 2))
    assert together.shape == (3, 64, 64, 3)
    for k, (spec, seed) in enumerate(((star, 3), (star, 4), (ring, 5))):
        alone = draw_job(generator, DrawJob((spec,), (seed,), 2))[0]
        assert np.abs(alone.astype(int) - together[k]).max() <= 1


def test_mining_keeps_what_fools_the_judge_and_some_right_images() -> None:
    margins = np.arange(40, 0, -1, dtype=np.float64)
    correct = np.zeros(40, np.bool_)
    correct[[0, 1, 2, 3, 8, 20, 30, 35, 39]] = True
    kept = hard_images(margins, correct)
    assert kept == sorted({0, 1, 2, 3, *(k for k in range(4, 16) if k != 8), 39, 8, 20})
    assert hard_images(margins[::-1].copy(), np.zeros(40, np.bool_)) == list(range(24, 40))
    assert hard_images(margins, np.ones(40, np.bool_)) == [0, 1, 2, 3, 4, 5, 39]
