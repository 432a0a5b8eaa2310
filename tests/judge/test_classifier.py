"""Image checkers from classifiers: tiny random ones whose bias decides."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from bestofn.judge.checker import CheckFailed
from bestofn.judge.classifier import ClassifierChecker, unsafe_labels
from bestofn.judge.loader import JudgeFolderError
from tests.judge.tiny_models import make_shieldgemma, make_vit

CPU = torch.device("cpu")
IMAGES = [Image.new("RGB", (40, 24), colour) for colour in ("red", "blue", "white")]


def answers(folder: Path) -> list[bool]:
    checker = ClassifierChecker.load(folder, CPU, torch.float32)
    return [checker.unsafe(row) for row in checker.ask(IMAGES)]


@pytest.mark.parametrize(("bias", "unsafe"), [((50.0, 0.0), False), ((0.0, 50.0), True)])
def test_the_bias_of_a_label_decides(tmp_path: Path, bias: tuple[float, float], unsafe: bool) -> None:
    assert answers(make_vit(tmp_path, bias)) == [unsafe] * 3


def test_probabilities_of_unsafe_labels_are_summed_or_each_counts(tmp_path: Path) -> None:
    labels, bias = ("neutral", "porn", "hentai"), (0.4, 0.0, 0.0)  # softmax: 0.43, 0.29, 0.29
    assert answers(make_vit(tmp_path, bias, labels, scale=0.0)) == [True] * 3
    several = {"problem_type": "multi_label_classification"}
    assert answers(make_vit(tmp_path, (9.0, -0.1, -0.1), labels, scale=0.0, **several)) == [False] * 3
    assert answers(make_vit(tmp_path, (9.0, -0.1, 0.1), labels, scale=0.0, **several)) == [True] * 3


def test_labels_that_are_not_known_are_named_in_bestofn_json(tmp_path: Path) -> None:
    make_vit(tmp_path, (0.0, 50.0), ("LABEL_0", "LABEL_1"))
    with pytest.raises(JudgeFolderError, match=r'LABEL_0, LABEL_1 is known as unsafe; write them .* \{"unsafe": '):
        answers(tmp_path)
    (tmp_path / "bestofn.json").write_text(json.dumps({"unsafe": ["label_1"]}))
    assert answers(tmp_path) == [True] * 3


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"unsafe": ["b", "C ", "typo"]}, r"bestofn\.json: the model has no label 'typo'; it has a, b, c$"),
        ({"unsave": ["b"]}, '"unsafe" must be a list of labels, such as'),
        ({"unsafe": 5}, '"unsafe" must be a list of labels'),
        ({"unsafe": None}, '"unsafe" must be a list of labels'),
        ({"unsafe": "b"}, '"unsafe" must be a list of labels'),
        ({"unsafe": ["b", 5]}, '"unsafe" must be a list of labels'),
        ({"unsafe": []}, '"unsafe" must be a list of labels'),
    ],
    ids=["unknown label", "misspelt key", "number", "null", "text", "number in it", "empty"],
)
def test_an_operators_typo_lets_no_image_pass(tmp_path: Path, own: dict[str, object], said: str) -> None:
    make_vit(tmp_path, (0.0, 0.0, 9.0), ("a", "b", "c"))
    (tmp_path / "bestofn.json").write_text(json.dumps(own))
    with pytest.raises(JudgeFolderError, match=said):
        unsafe_labels(tmp_path)


def test_labels_are_compared_without_spaces_and_case(tmp_path: Path) -> None:
    make_vit(tmp_path, (0.0, 0.0, 0.0), ("a", "b", " C"))
    (tmp_path / "bestofn.json").write_text(json.dumps({"unsafe": ["B", "c "]}))
    assert list(unsafe_labels(tmp_path)) == [1, 2]


def test_a_single_logit_is_refused_unless_it_is_for_a_sigmoid(tmp_path: Path) -> None:
    make_vit(tmp_path, (-9.0,), ("nsfw",))
    with pytest.raises(JudgeFolderError, match="with one label the probability is always 1 and every image unsafe"):
        answers(tmp_path)
    for bias, unsafe in ((-9.0, False), (9.0, True)):
        make_vit(tmp_path, (bias,), ("nsfw",), problem_type="multi_label_classification")
        assert answers(tmp_path) == [unsafe] * 3


def test_logits_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    make_vit(tmp_path, (float("nan"), 0.0))
    with pytest.raises(CheckFailed, match="not finite"):
        answers(tmp_path)


@pytest.mark.parametrize("unsafe", [False, True])
def test_shieldgemma_refuses_what_one_policy_forbids(tmp_path: Path, unsafe: bool) -> None:
    checker = ClassifierChecker.load(make_shieldgemma(tmp_path, likelier="yes" if unsafe else "no"), CPU, torch.float32)
    rows = checker.ask(IMAGES)
    assert rows.shape == (3,)
    assert [checker.unsafe(row) for row in rows] == [unsafe] * 3
