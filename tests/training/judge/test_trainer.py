"""A whole run of the judge's training at the smallest size: stages, resumption, calibration and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bestofn.judge.calibration import FILE
from bestofn.judge.judge import EMBEDDED, Judge
from bestofn.judge.loader import revision
from bestofn.judge.tiny import SHAPES, save, untrained
from bestofn.training.judge import trainer
from bestofn.training.judge.dataset import QUESTION, words
from bestofn.training.judge.settings import BatchMix, JudgeSettings
from bestofn.training.judge.trainer import stages, train_judge

MIX = BatchMix(groups=1, group_images=2, pairs=1, place_pairs=1, scenes=1, questions=2, pair_questions=1)


def settings(folder: Path) -> JudgeSettings:
    return JudgeSettings(
        folder / "run",
        folder / "judge",
        vision_warmup_steps=1,
        rendered_steps=3,
        place_steps=2,
        prompts=2,
        images=2,
        steps=2,
        adversarial_rounds=1,
        adversarial_prompts=2,
        adversarial_images=2,
        adversarial_steps=2,
        decay_steps=2,
        scenes=4,
        validation_prompts=1,
        validation_images=2,
        calibration_prompts=1,
        calibration_images=2,
        rendered_mix=replace(MIX, groups=0),
        place_mix=replace(MIX, groups=0, pairs=0),
        mix=MIX,
        compiled=False,
    )


class Stopped(Exception):
    pass


def test_an_interrupted_run_ends_with_the_same_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "STEPS", 2)  # of the images, which need not be good
    shown: list[tuple[str, float]] = []

    def show(stage: str, figures: Mapping[str, float]) -> None:
        shown.append((stage, figures["step"]))
        if stop and shown[-1] == stop[-1]:
            stop.pop()
            raise Stopped

    stop: list[tuple[str, float]] = []
    whole = train_judge(settings(tmp_path / "whole"), show)
    names = ["rendered", "places", "round-0", "round-1", "decay"]
    assert [stage["stage"] for stage in whole.stages] == names
    assert [stage.name for stage in stages(settings(tmp_path))] == names
    assert ("mining of round-1", 2) in shown
    for name in names:
        assert (tmp_path / "whole" / "run" / name / "log.jsonl").is_file()
        assert Judge.load(tmp_path / "whole" / "run" / name / "judge").known_words

    for pool in ("validation", "calibration"):
        shutil.copytree(tmp_path / "whole" / "run" / pool, tmp_path / "cut" / "run" / pool)
    stop = [("mining of round-1", 1), ("round-0", 1)]
    for _ in range(2):
        with pytest.raises(Stopped):
            train_judge(settings(tmp_path / "cut"), show)
    resumed = train_judge(settings(tmp_path / "cut"), show)
    assert resumed.revision == whole.revision == revision(tmp_path / "cut" / "judge")

    folder = tmp_path / "whole" / "judge"
    assert json.loads((folder / FILE).read_text())["judge"] == whole.revision
    record = json.loads((folder / "training.json").read_text())
    assert record["settings"]["adversarial_prompts"] == 2
    assert record["settings"]["low_precision"] is True
    card = (folder / "README.md").read_text()
    assert "Matrix products in bfloat16" in card
    assert "--adversarial-prompts 2" in card
    assert whole.revision in card
    assert "| round-1 | 4 |" in card

    with pytest.raises(ValueError, match="was filled with seed 0, not 1"):
        train_judge(replace(settings(tmp_path / "whole"), seed=1), show)


def test_a_run_goes_on_from_a_trained_judge_of_the_same_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "STEPS", 2)
    further = replace(settings(tmp_path), start="shapes", adversarial_rounds=0)
    made = train_judge(further, lambda *_: None)
    assert [stage["stage"] for stage in made.stages] == ["places", "round-0", "decay"]
    assert made.settings["start_revision"] == revision(EMBEDDED) != made.revision
    card = (tmp_path / "judge" / "README.md").read_text()
    assert f"began with the judge of revision `{revision(EMBEDDED)}`" in card
    assert "--start shapes" in card
    other, question = untrained(replace(SHAPES, layers=2), words(), QUESTION, 0)
    save(tmp_path / "other", other, question, [], SHAPES.S, torch.float32)
    with pytest.raises(ValueError, match=r"differs from the judge that this training makes in llm\.model\.layers\.2"):
        train_judge(replace(further, run=tmp_path / "run-2", start=str(tmp_path / "other")), lambda *_: None)
