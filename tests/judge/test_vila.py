"""The native NVILA against the published code's golden data, alone and in batches."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

from bestofn.judge.bracket import script_sub_brackets
from bestofn.judge.flops import language_flops
from bestofn.judge.judge import EMBEDDED, Judge, rank_images
from bestofn.judge.verdict import Rule

FIXTURE = Path(__file__).parent.parent / "fixtures" / "vila"
GOLDEN = json.loads((FIXTURE / "cases.json").read_text())
CASES = {case["id"]: case for case in GOLDEN["cases"]}
NEUTRALISED = [name for name, case in CASES.items() if case["control_tokens_in_prompt"]]


@cache
def judge() -> Judge:
    return Judge.load(FIXTURE / "checkpoint")


@cache
def expected() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / "expected.safetensors")


def case_image(case: dict[str, Any]) -> Image.Image:
    with Image.open(FIXTURE / case["image"]) as image:
        image.load()
    return image


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@torch.inference_mode()
def logits(images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
    tiles = [judge().image_mode.tiles(image) for image in images]
    rows = [judge().ids(prompt, len(cut)) for prompt, cut in zip(prompts, tiles, strict=True)]
    return judge().model(torch.from_numpy(judge().image_mode.pixels(np.concatenate(tiles))), rows)


@pytest.mark.parametrize("name", CASES)
def test_golden_case(name: str) -> None:
    case = CASES[name]
    tiles = judge().image_mode.tiles(case_image(case))
    assert len(tiles) == case["num_tiles"] == judge().tiles(*case["image_size"])
    assert sha(tiles) == case["tiles_u8_sha256"]
    pixels = judge().image_mode.pixels(tiles)
    assert sha(pixels) == case["pixel_sha256"]
    assert sha(pixels.astype(np.float16)) == case["pixel_half_sha256"]

    ids = judge().ids(case["prompt"], len(tiles))
    z = logits([case_image(case)], [case["prompt"]])[0]
    difference = (z - expected()[f"{name}.logits"]).abs().max()
    if name in NEUTRALISED:
        assert difference > 1
        special = {judge().model.media_id, *(GOLDEN["meta"]["special_ids"][x] for x in ("video", "eos", "pad", "bos"))}
        template = judge().ids("", len(tiles))
        assert [x for x in ids if x in special] == [x for x in template if x in special]
    else:
        assert ids == case["input_ids"]
        assert len(ids) + len(tiles) * judge().tokens_per_tile == case["num_positions"]
        assert difference < 1e-4
        [verdict] = judge().judge([case_image(case)], [case["prompt"]])
        assert verdict.yes_logit == pytest.approx(case["yes_logit"], abs=1e-4)
        assert verdict.no_logit == pytest.approx(case["no_logit"], abs=1e-4)
        words = {"yes": "yes", "no": "no"}
        assert verdict.answer == words.get(case["first_token_text"], "other")


def test_features_of_the_tower_and_the_projector() -> None:
    case = CASES["c02"]
    pixels = torch.from_numpy(judge().image_mode.pixels(judge().image_mode.tiles(case_image(case))))
    with torch.inference_mode():
        seen = judge().model.vision_tower(pixels)
        features = judge().model.mm_projector(seen)
        embedded, _ = judge().model.embed([judge().ids(case["prompt"], 1)], features)
    torch.testing.assert_close(seen[:, :3, :6], expected()["c02.vision_slice"], atol=1e-5, rtol=0)
    torch.testing.assert_close(features, expected()["c02.features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(embedded[0], expected()["c02.inputs_embeds"], atol=1e-5, rtol=0)
    assert [layer.eps for layer in judge().model.mm_projector.layers if hasattr(layer, "eps")] == [1e-5, 1e-5]


def test_a_mixed_batch_equals_one_at_a_time() -> None:
    names = ["c00", "c02", "c07", "c17", "c03", "c18"]
    all_images = [case_image(CASES[name]) for name in names]
    prompts = [CASES[name]["prompt"] for name in names]
    together = logits(all_images, prompts)
    for z, image, prompt in zip(together, all_images, prompts, strict=True):
        torch.testing.assert_close(z, logits([image], [prompt])[0], atol=1e-4, rtol=0)


def test_picks_of_the_published_script() -> None:
    group = GOLDEN["group"]["case_ids"]
    images = [case_image(CASES[name]) for name in group]
    verdicts, order, bracket = rank_images(judge(), CASES[group[0]]["prompt"], images, Rule.OFFICIAL, batch=3)
    for k, picks in GOLDEN["group"]["picks"].items():
        assert [group[bracket.winner] for bracket in script_sub_brackets(verdicts, int(k))] == picks
    assert bracket.winner == order[0]


def test_half_precision_is_near() -> None:
    half = Judge.load(FIXTURE / "checkpoint", dtype=torch.float16)
    [verdict] = half.judge([case_image(CASES["c17"])], [CASES["c17"]["prompt"]])
    assert verdict.answer == "yes"
    assert verdict.yes_logit == pytest.approx(CASES["c17"]["yes_logit"], abs=0.15)


def test_fewer_tiles_on_request_and_arrays_like_images() -> None:
    one = Judge.load(FIXTURE / "checkpoint", max_tiles=1)
    image = case_image(CASES["c01"])
    assert (judge().tiles(*image.size), one.tiles(*image.size)) == (10, 1)
    assert judge().flops(*image.size) > 4 * one.flops(*image.size)
    assert one.judge([np.asarray(image)], ["a cat"]) == one.judge([image], ["a cat"])
    assert judge().judge([], []) == []


@pytest.mark.parametrize("folder", [EMBEDDED, FIXTURE / "checkpoint"], ids=["shapes", "grouped keys"])
@pytest.mark.parametrize("length", [1, 2, 7, 333])
def test_language_flops_are_those_that_torch_counts(folder: Path, length: int) -> None:
    model = Judge.load(folder).model
    with torch.device("meta"):
        read = Qwen2ForCausalLM(model.llm.config).model
        embedded = torch.empty(1, length, model.llm.config.hidden_size)
    with FlopCounterMode(display=False) as counter:
        read(inputs_embeds=embedded, attention_mask={"full_attention": None}, use_cache=False)
    head = 2 * model.llm.config.hidden_size * model.vocabulary
    assert language_flops(model, length) == counter.get_total_flops() + head


def test_flops_of_a_new_prompt_are_known_without_a_forward() -> None:
    one = Judge.load(FIXTURE / "checkpoint")
    one.flops(448, 448)  # the tower's, once
    with NoOperators():
        assert one.flops(448, 448, "a cat on a mat of another length") > one.flops(448, 448)


class NoOperators(TorchDispatchMode):
    """Fails at the first operator."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} was called")


def test_judge_given_more_than_it_reads_refuses_with_numbers() -> None:
    image = case_image(CASES["c02"])
    with pytest.raises(ValueError, match=r"positions, the judge reads fewer than 4096: shorten"):
        judge().judge([image], ["word " * 4096])
    with pytest.raises(ValueError, match="1 images and 2 prompts"):
        judge().judge([image], ["a", "b"])
    with pytest.raises(ValueError, match=r"uint8, got \(8, 8\) uint8"):
        judge().judge([np.zeros((8, 8), np.uint8)], ["a"])
