"""The training loop: packed questions equal single ones, a resumed run equals an uninterrupted one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bestofn.judge.judge import Judge
from bestofn.judge.preprocess import ImageMode
from bestofn.judge.tiny import DESCRIBE, SmallShape, save, untrained
from bestofn.training.judge.examples import IGNORE, Collator, ImageExample, QuestionExample
from bestofn.training.judge.loop import JudgeTrainingModel, Schedule, train

TINY = SmallShape(S=32, stem=8, widths=(16, 32), depths=(1, 1), D=32, feed_forward=64, layers=2, heads=2)
WORDS = ["dark", "bright", "a", "image"]
MODE = ImageMode("resize", 32, 1, 1, (0.5,) * 3, (0.5,) * 3, 1 / 255)
CLASSES = (2,)


def examples(step: int) -> list[ImageExample]:
    """Dark and bright images, asked for both words, ranked by the first."""
    rng = np.random.default_rng(step)
    out = []
    for number in range(8):
        bright = number % 2 == 0
        image = rng.integers(150, 256, (32, 32, 3)) if bright else rng.integers(0, 100, (32, 32, 3))
        questions = (
            QuestionExample("a bright image", bright, auxiliary_targets=((2, bright),), group=number // 4),
            QuestionExample("a DARK image", not bright, 2.0),
        )
        cells = np.full((1, 4, 4), int(bright), np.int64)
        out.append(ImageExample(image.astype(np.uint8), questions, "bright" if bright else "dark", cells))
    return out


def training_model(seed: int = 0) -> tuple[JudgeTrainingModel, Collator]:
    model, question = untrained(TINY, WORDS, "{prompt} is it", seed)
    return JudgeTrainingModel(model, CLASSES), Collator(question, MODE, DESCRIBE, (1, 4, 4))


def test_packed_questions_are_the_same_as_single_ones() -> None:
    model, collate = training_model()
    model.eval()
    bare = [
        replace(one, questions=tuple(QuestionExample(q.prompt, q.satisfied) for q in one.questions))
        for one in examples(3)[:3]
    ]
    batch = collate(bare)
    with torch.inference_mode():
        logits, labels = model(batch, collate.head)
        rows = (batch.targets != IGNORE).nonzero()[:, 0]
        images = torch.from_numpy(MODE.pixels(np.stack([one.image for one in bare for _ in one.questions])))
        ids = [collate.question.ids(q.prompt, 1) for one in bare for q in one.questions]
        alone = model.model(images, ids)
    torch.testing.assert_close(logits[batch.questions[rows]], alone, atol=1e-5, rtol=1e-4)
    assert labels.shape == (3, 2, 16)
    described = batch.targets[~batch.questions]
    words = collate.question.tokenizer.convert_ids_to_tokens(described[described != IGNORE].tolist())
    assert words == [word for one in bare for word in (one.description, "<|endoftext|>")]


def test_targets_have_the_positions_of_their_words() -> None:
    _, collate = training_model()
    batch = collate([examples(3)[0]])
    question, tokenizer = collate.question, collate.question.tokenizer
    row = batch.targets[0].tolist()
    ids = tokenizer.convert_ids_to_tokens(batch.ids[0].tolist())
    assert [ids[k] for k, target in enumerate(row) if target != IGNORE] == ["bright", "<|im_end|>"]
    assert ids[int(batch.answer_position[0])] == "<|im_end|>"
    assert {target for target in row if target != IGNORE} <= {question.yes_id, question.no_id}
    assert batch.weights[0].unique().tolist() == pytest.approx([0.0, 0.3, 1.0])
    assert batch.groups.tolist() == [0, -1, -1]


def test_judge_training_learns_and_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    schedule = Schedule(steps=30, learning_rate=0.04, warmup_steps=5, save_every=10)
    seen: list[Mapping[str, float]] = []

    def run(folder: Path, last_step: int | None) -> JudgeTrainingModel:
        model, collate = training_model()

        def progress(figures: Mapping[str, float]) -> None:
            seen.append(figures)
            if figures["step"] == last_step:
                raise KeyboardInterrupt

        train(model, schedule, examples, collate, lambda: {"accuracy": 0.5}, folder, progress)
        return model

    whole = run(tmp_path / "whole", None)
    assert seen[-1]["answers"] < 0.2 < 0.5 < seen[0]["answers"]
    assert seen[-1]["ordered"] == 1.0
    assert [figures["step"] for figures in seen if "accuracy" in figures] == [10, 20, 30]
    assert len((tmp_path / "whole" / "log.jsonl").read_text().splitlines()) == 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 17)
    resumed = run(tmp_path / "cut", None)
    assert [figures["step"] for figures in seen[-20:]] == list(range(11, 31))
    for (name, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_loaded_judge_is_trained_in_all_its_parts(tmp_path: Path) -> None:
    model, collate = training_model()
    save(tmp_path / "judge", model.model, collate.question, WORDS, 32, torch.float32)
    loaded = JudgeTrainingModel(Judge.load(tmp_path / "judge").model, CLASSES)
    loss, _ = loaded.loss(collate(examples(0)), collate)
    loss.backward()
    assert [name for name, p in loaded.named_parameters() if p.grad is None] == []


def test_bfloat16_products_are_near() -> None:
    model, collate = training_model()
    batch = collate(examples(0))
    plain, _ = model.loss(batch, collate)
    model.model.llm.config._attn_implementation = "float32_sdpa"
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = model.loss(batch, collate)
    assert low.item() == pytest.approx(plain.item(), rel=0.02)


def test_a_saved_judge_loads_and_keeps_control_tokens_out(tmp_path: Path) -> None:
    model, collate = training_model()
    folder = tmp_path / "judge"
    save(folder, model.model, collate.question, WORDS, 32, torch.float32)
    judge = Judge.load(folder)
    image = examples(0)[0].image
    model.eval()
    with torch.inference_mode():
        expected = model.model(torch.from_numpy(MODE.pixels(image[None])), [collate.question.ids("a dark", 1)])
    [verdict] = judge.judge([image], ["a dark"])
    assert verdict.yes_logit == pytest.approx(expected[0, collate.question.yes_id].item(), abs=1e-5)
    assert judge.ids("A Dark", 1) == judge.ids("a dark", 1)
    assert judge.unknown_words("a dark<|im_end|>yes") == ["im", "end", "yes"]
    ids = judge.ids("<image><|im_end|><|endoftext|> dark", 1)
    unknown = collate.question.tokenizer.unk_token_id
    assert ids.count(judge.model.media_id) == 1
    assert ids[-1:] == collate.question.suffix
    assert set(ids[2:-1]) <= set(judge.ids("dark is it", 1)) | {unknown}
    assert judge.tiles(96, 64) == 1
