"""CLIP and SigLIP as judges: rewards are transformers' own, and a calibration decides what is a yes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel
from transformers.utils import logging

from bestofn.judge.calibration import Calibration
from bestofn.judge.clip import ClipJudge
from bestofn.judge.interface import reward_verdict
from bestofn.judge.judge import rank_images
from bestofn.judge.loader import JudgeFolderError
from bestofn.judge.verdict import Rule
from tests.judge.tiny_models import make_clip, make_vlm

CPU = torch.device("cpu")
IMAGES = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (20, 48), "blue")]
PROMPTS = ["a photo of a red circle", "a blue square " * 50]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_rewards_are_logits_per_image(kind: str, tmp_path: Path) -> None:
    logging.disable_progress_bar()
    folder = make_clip(kind, tmp_path)
    judge = ClipJudge.load(folder, CPU, torch.float32)
    model = AutoModel.from_pretrained(folder).eval()
    cut = {"padding": "max_length", "truncation": True, "max_length": 32, "return_tensors": "pt"}
    words = judge._tokenizer(PROMPTS, **cut)
    mask = {"attention_mask": words["attention_mask"]} if kind == "clip" else {}
    with torch.inference_mode():
        pixels = judge._images(images=IMAGES, return_tensors="pt")["pixel_values"]
        expected = model(input_ids=words["input_ids"], pixel_values=pixels, **mask).logits_per_image.diagonal()
    verdicts = judge.judge(IMAGES, PROMPTS)
    assert [verdict.margin for verdict in verdicts] == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(verdict.answer == ("yes" if verdict.margin > 0 else "no") for verdict in verdicts)
    margins = [judge.judge([image], PROMPTS[:1])[0].margin for image in IMAGES]
    best = margins.index(max(margins))
    for rule in (Rule.MARGIN, Rule.OFFICIAL):
        assert rank_images(judge, PROMPTS[0], IMAGES, rule)[1][0] == best
    assert judge.flops(64, 64) == judge.flops(1024, 1024) > 10_000


def test_a_calibration_decides_what_is_a_yes() -> None:
    calibration = Calibration(temperature=2.0, bias=-12.0, ceiling=0.9)
    for log_odds, alone, calibrated in ((20.0, "yes", "no"), (30.0, "yes", "yes"), (-1.0, "no", "no")):
        assert reward_verdict(log_odds).answer == alone
        verdict = reward_verdict(log_odds, calibration)
        assert (verdict.answer, verdict.margin) == (calibrated, log_odds)
    assert reward_verdict(float("nan")).broken
    assert reward_verdict(float("inf")).broken


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeFolderError, match="model_type 'paligemma' is not clip, siglip"):
        ClipJudge.load(make_vlm("paligemma", tmp_path), CPU, torch.float32)
