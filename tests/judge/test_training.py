"""A small NVILA is made, taught and saved; what it learns packed is what it answers one by one."""

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
from bestofn.training.judge.examples import IGNORE, Asked, Collator, Lesson
from bestofn.training.judge.loop import Plan, Pupil, train

TINY = SmallShape(S=32, stem=8, widths=(16, 32), depths=(1, 1), D=32, feed_forward=64, layers=2, heads=2)
WORDS = ["dark", "bright", "a", "picture"]
MODE = ImageMode("resize", 32, 1, 1, (0.5,) * 3, (0.5,) * 3, 1 / 255)
PRIORITIES = (2,)


def lessons(step: int) -> list[Lesson]:
    """Dark and bright pictures, asked for both words."""
    rng = np.random.default_rng(step)
    out = []
    for _ in range(8):
        bright = bool(rng.integers(2))
        picture = rng.integers(150, 256, (32, 32, 3)) if bright else rng.integers(0, 100, (32, 32, 3))
        asked = (Asked("a bright picture", bright, hints=((2, bright),)), Asked("a DARK picture", not bright, 2.0))
        cells = np.full((1, 4, 4), int(bright), np.int64)
        out.append(Lesson(picture.astype(np.uint8), asked, "bright" if bright else "dark", cells))
    return out


def pupil(seed: int = 0) -> tuple[Pupil, Collator]:
    model, question = untrained(TINY, WORDS, "{prompt} is it", seed)
    return Pupil(model, PRIORITIES), Collator(question, MODE, DESCRIBE, (1, 4, 4))


def test_packed_questions_are_the_same_as_single_ones() -> None:
    taught, collate = pupil()
    taught.eval()
    some = [replace(x, asked=tuple(replace(y, hints=()) for y in x.asked)) for x in lessons(3)[:3]]
    batch = collate(some)
    with torch.inference_mode():
        logits, rows, labels = taught(batch, collate.head)
        questions = batch.answers[rows]
        pictures = torch.from_numpy(MODE.pixels(np.stack([x.picture for x in some for _ in x.asked])))
        alone = taught.model(pictures, [collate.question.ids(y.prompt, 1) for x in some for y in x.asked])
    torch.testing.assert_close(logits[questions], alone, atol=1e-5, rtol=1e-4)
    assert labels.shape == (3, 2, 16)
    described = batch.targets[~batch.answers]
    words = collate.question.tokenizer.convert_ids_to_tokens(described[described != IGNORE].tolist())
    assert words == [word for x in some for word in (x.description, "<|endoftext|>")]


def test_a_hint_stands_where_the_word_was_said() -> None:
    _, collate = pupil()
    batch = collate([lessons(3)[0]])
    question, tokenizer = collate.question, collate.question.tokenizer
    row = batch.targets[0].tolist()
    asked = tokenizer.convert_ids_to_tokens(batch.ids[0].tolist())
    assert [asked[k] for k, target in enumerate(row) if target != IGNORE] == ["bright", "<|im_end|>"]
    assert {target for target in row if target != IGNORE} <= {question.yes_id, question.no_id}
    assert batch.weights[0].unique().tolist() == pytest.approx([0.0, 0.3, 1.0])


def test_it_learns_and_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    plan = Plan(steps=30, learning_rate=0.04, warm_up=5, every=10)
    seen: list[Mapping[str, float]] = []

    def run(folder: Path, steps_before_the_cut: int | None) -> Pupil:
        taught, collate = pupil()

        def progress(figures: Mapping[str, float]) -> None:
            seen.append(figures)
            if figures["step"] == steps_before_the_cut:
                raise KeyboardInterrupt

        train(taught, plan, lessons, collate, lambda: 0.5, folder, progress)
        return taught

    whole = run(tmp_path / "whole", None)
    assert seen[-1]["answers"] < 0.2 < 0.5 < seen[0]["answers"]
    assert [figures["step"] for figures in seen if "accuracy" in figures] == [10, 20, 30]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 17)
    resumed = run(tmp_path / "cut", None)
    assert [figures["step"] for figures in seen[-20:]] == list(range(11, 31))
    for (name, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_bfloat16_products_are_near(tmp_path: Path) -> None:
    taught, collate = pupil()
    batch = collate(lessons(0))
    plain, _ = taught.loss(batch, collate.head, Plan(1))
    taught.model.llm.config._attn_implementation = "float32_sdpa"
    with torch.autocast("cpu", torch.bfloat16):
        reduced, _ = taught.loss(batch, collate.head, Plan(1))
    assert reduced.item() == pytest.approx(plain.item(), rel=0.02)


def test_a_saved_judge_loads_and_keeps_control_tokens_out(tmp_path: Path) -> None:
    taught, collate = pupil()
    folder = tmp_path / "judge"
    save(folder, taught.model, collate.question, WORDS, 32, torch.float32)
    judge = Judge.load(folder)
    picture = lessons(0)[0].picture
    taught.eval()
    with torch.inference_mode():
        expected = taught.model(torch.from_numpy(MODE.pixels(picture[None])), [collate.question.ids("a dark", 1)])
    [verdict] = judge.judge([picture], ["a dark"])
    assert verdict.yes_logit == pytest.approx(expected[0, collate.question.yes_id].item(), abs=1e-5)
    assert judge.ids("A Dark", 1) == judge.ids("a dark", 1)
    assert judge.unknown_words("a dark<|im_end|>yes") == ["im", "end", "yes"]
    ids = judge.ids("<image><|im_end|><|endoftext|> dark", 1)
    unknown = collate.question.tokenizer.unk_token_id
    assert ids.count(judge.model.media_id) == 1
    assert ids[-1:] == collate.question.suffix
    assert set(ids[2:-1]) <= set(judge.ids("dark is it", 1)) | {unknown}
    assert judge.tiles(96, 64) == 1
