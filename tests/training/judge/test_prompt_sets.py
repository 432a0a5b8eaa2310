"""Prompt sets: no training image is drawn for the benchmark or validation, none with a held-out combination."""

from __future__ import annotations

from itertools import chain

from bestofn.models.shapes.prompts import CATEGORIES, SEED_STRIDE, benchmark_prompts, held_out
from bestofn.training.judge.prompt_sets import (
    adversarial_jobs,
    calibration_jobs,
    random_jobs,
    validation_jobs,
    validation_prompts,
)

TRAINING = [*random_jobs(0, 400, 2), *adversarial_jobs(0, 1, 200, 4), *adversarial_jobs(0, 2, 200, 4)]


def test_training_prompts_are_neither_in_the_benchmark_nor_in_validation_nor_held_out() -> None:
    specs = {spec for job in TRAINING for spec in job.specs}
    prompts = {spec.prompt for spec in specs}
    assert len(prompts) > 300
    assert prompts.isdisjoint(one.spec.prompt for one in benchmark_prompts())
    assert prompts.isdisjoint(spec.prompt for spec in validation_prompts())
    assert not any(held_out(spec) for spec in specs)


def test_noise_seeds_of_all_sets_differ() -> None:
    sets = [
        set(chain.from_iterable(job.seeds for job in jobs))
        for jobs in (TRAINING, random_jobs(1, 40, 2), validation_jobs(10, 16, 12), calibration_jobs(40, 32, 12, ()))
    ]
    sets.append({one.seed + k for one in benchmark_prompts() for k in range(SEED_STRIDE)})
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert sum(len(job.seeds) for job in TRAINING) == len(sets[0])


def test_calibration_prompts_are_of_all_combinations_and_none_is_trained() -> None:
    trained = {spec.prompt for job in TRAINING for spec in job.specs}
    specs = {spec for job in calibration_jobs(40, 1, 12, trained) for spec in job.specs}
    assert trained.isdisjoint(spec.prompt for spec in specs)
    assert {spec.tag for spec in specs} == set(CATEGORIES)
    assert 0.1 < sum(map(held_out, specs)) / len(specs) < 0.5


def test_jobs_depend_on_seed_and_round_alone() -> None:
    assert adversarial_jobs(0, 1, 5, 4) == adversarial_jobs(0, 1, 9, 4)[:5]
    assert adversarial_jobs(0, 1, 5, 4) != adversarial_jobs(0, 2, 5, 4)
    assert random_jobs(0, 12, 2) != random_jobs(1, 12, 2)
    assert [job.specs[0].tag for job in validation_jobs(1, 2, 12)] == list(
        dict.fromkeys(spec.tag for spec in validation_prompts())
    )
