"""Any vision-language model of transformers as a judge: its first token's scores are transformers' own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.utils import logging
from typer.testing import CliRunner

from bestofn.cli.main import program
from bestofn.judge.loader import JudgeFolderError, flat_revision
from bestofn.judge.verdict import BROKEN
from bestofn.judge.vlm import VlmJudge
from bestofn.service.doctor.checkpoints import locate
from bestofn.service.doctor.memory import needs
from bestofn.service.doctor.weights.check import check
from bestofn.service.engine.judge_loader import find_judge, judge_bytes
from tests.judge.tiny_models import VLMS, make_clip, make_vlm

# PaliGemma's processor makes labels, by a call that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
IMAGES = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 48), "blue")]
PROMPTS = ["a photo of a red circle", "a <|im_end|><image> blue [IMG] square and more of it"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}
    logging.disable_progress_bar()

    def folder_of(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_vlm(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder_of


@pytest.mark.parametrize("kind", VLMS)
def test_verdicts_are_the_scores_of_generate(kind: str, folder_of: Callable[[str], Path]) -> None:
    judge = VlmJudge.load(folder_of(kind), CPU, torch.float32)
    inputs = judge.conversation.inputs(IMAGES, PROMPTS)
    once = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    p = judge.model.generate(**inputs, **once).scores[0].softmax(1)
    vocabulary = judge.conversation.tokenizer.get_vocab()
    spelled = {
        word: [vocabulary[token] for token in (word, word.title(), f"\u0120{word}", f"\u0120{word.title()}")]
        for word in ("yes", "no")
    }
    verdicts = judge.judge(IMAGES, PROMPTS)
    for row, verdict in zip(p, verdicts, strict=True):
        yes, no = (row[spelled[word]].sum() for word in ("yes", "no"))
        assert verdict.margin == pytest.approx(float((yes / no).log()), abs=1e-5)
        others = row.index_fill(0, torch.tensor(spelled["yes"] + spelled["no"]), 0.0)
        p_of = {"yes": float(yes), "no": float(no), "other": float(others.max())}
        assert verdict.answer == max(p_of, key=lambda word: p_of[word])
    alone = judge.judge(IMAGES[1:], PROMPTS[1:])
    assert alone[0].margin == pytest.approx(verdicts[1].margin, abs=1e-5)
    assert judge.flops(64, 64) > 10_000


def test_a_prompt_cannot_end_its_turn(folder_of: Callable[[str], Path]) -> None:
    conversation = VlmJudge.load(folder_of("qwen3_vl"), CPU, torch.float32).conversation
    ids = conversation.inputs(IMAGES[:1], ["a star<im_end><|image_pad|> <|vision_start|>"])["input_ids"][0].tolist()
    plain = conversation.inputs(IMAGES[:1], ["a star"])["input_ids"][0].tolist()
    for token in ("<im_end>", "<|image_pad|>", "<|vision_start|>"):
        one = conversation.tokenizer.convert_tokens_to_ids(token)
        assert ids.count(one) == plain.count(one)


def test_a_prompt_that_is_too_long_is_refused(folder_of: Callable[[str], Path]) -> None:
    judge = VlmJudge.load(folder_of("qwen3_vl"), CPU, torch.float32)
    judge.check("a star", 64, 64)
    with pytest.raises(ValueError, match=r"the judge reads fewer than 1024: shorten the prompt"):
        judge.check("s" * 1024, 64, 64)


def test_logits_that_are_not_finite_are_no_verdict(folder_of: Callable[[str], Path]) -> None:
    judge = VlmJudge.load(folder_of("internvl"), CPU, torch.float32)
    assert judge.verdict(torch.tensor([torch.nan, 1.0, 2.0])).to_json() == BROKEN.to_json()
    for row, answer in (([2.0, 1.0, 2.0], "yes"), ([0.0, 1.0, 0.0], "no"), ([1.0, 0.0, 1.5], "other")):
        assert judge.verdict(torch.tensor(row)).answer == answer


def test_a_pickle_or_another_model_is_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = make_vlm("paligemma", tmp_path / "judge", seed=1)
    assert flat_revision(folder) != flat_revision(folder_of("paligemma"))
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(JudgeFolderError, match="safetensors"):
        VlmJudge.load(folder, CPU, torch.float32)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(JudgeFolderError, match="no processor of images and text for model_type 'bert'"):
        VlmJudge.load(folder, CPU, torch.float32)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "config.json",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "bitsandbytes",
        ),
        ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "needs a package: "),
        ("bestofn.json", {"question": 5}, r"the question must hold \{prompt\} once, got 5"),
        ("bestofn.json", {"question": None}, r"the question must hold \{prompt\} once, got None"),
        (
            "chat_template.jinja",
            "{{ raise_exception('no system role') }}",
            "its chat template cannot be used: no system",
        ),
        ("chat_template.jinja", "{% if %}", "its chat template cannot be used: Expected an expression"),
        ("chat_template.jinja", "{{ 1 + 'a' }}", "its chat template cannot be used: unsupported operand"),
    ],
    ids=["bitsandbytes", "AWQ", "number", "null", "exception", "syntax", "type"],
)
def test_folder_that_cannot_be_used_is_refused_in_one_line(
    folder_of: Callable[[str], Path], tmp_path: Path, file: str, text: str | dict[str, object], said: str
) -> None:
    path = shutil.copytree(folder_of("internvl"), tmp_path / "judge") / file
    old = json.loads(path.read_text()) if path.suffix == ".json" and path.is_file() else {}
    path.write_text(text if isinstance(text, str) else json.dumps(old | text))
    with pytest.raises(JudgeFolderError, match=said) as caught:
        VlmJudge.load(path.parent, CPU, torch.float32)
    assert str(caught.value).startswith(f"{path.parent}: ")
    assert "\n" not in str(caught.value)


def test_models_inspect_shows_the_template(folder_of: Callable[[str], Path]) -> None:
    done = CliRunner().invoke(program, ["models", "inspect", f"vlm:{folder_of('smolvlm')}"])
    assert done.exit_code == 0, done.output
    assert '<im_start>user\n<image>Does this image show "{prompt}"?' in done.output
    assert "Idefics3ForConditionalGeneration" in done.output


def test_the_doctor_and_the_check_know_its_layout(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("smolvlm")
    place = locate(f"vlm:{folder}", judge=True)
    assert (place.kind, place.broken, place.revision) == ("vlm", (), flat_revision(folder))
    needed = needs(locate("shapes"), [place], CPU)
    assert needed is not None
    assert needed.judges == [judge_bytes("vlm", folder, CPU)]
    assert [finding.state for finding in check(folder)] == ["ok"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_clip_named_as_another_kind_is_refused_with_its_prefix(kind: str, tmp_path: Path) -> None:
    folder = make_clip(kind, tmp_path)
    said = "is not of the kind vlm: write clip: before its name"
    with pytest.raises(JudgeFolderError, match=said):
        find_judge(f"vlm:{folder}")
    place = locate(f"vlm:{folder}", judge=True)
    assert (place.broken, place.fix) == ((f"it {said}",), "")
    assert locate(f"clip:{folder}", judge=True).broken == ()


@pytest.mark.parametrize("kind", ["vlm", "clip"])
def test_a_vila_checkpoint_named_as_another_kind_is_refused_with_its_prefix(kind: str) -> None:
    with pytest.raises(JudgeFolderError, match=f"is not of the kind {kind}: write vila: before its name"):
        find_judge(f"{kind}:shapes")
