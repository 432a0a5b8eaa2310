"""Folders that are no judge are refused with the file and the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bestofn.judge.judge import Judge
from bestofn.judge.loader import JudgeFolderError, revision

CHECKPOINT = Path(__file__).parent.parent / "fixtures" / "vila" / "checkpoint"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "judge"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def drop_weight(folder: Path) -> None:
    path = folder / "vision_tower" / "model.safetensors"
    tensors = load_file(path)
    del tensors["vision_model.embeddings.patch_embedding.bias"]
    save_file(tensors, path, {"format": "pt"})


def add_weight(folder: Path) -> None:
    path = folder / "llm" / "model.safetensors"
    save_file(load_file(path) | {"model.layers.9.extra": torch.zeros(1)}, path, {"format": "pt"})


def pickle_weights(folder: Path) -> None:
    path = folder / "llm" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def bring_code(folder: Path) -> None:
    tower = folder / "vision_tower"
    (tower / "tower.py").write_text("raise SystemExit('this code ran')")
    auto_map = {"AutoConfig": "tower.Config", "AutoModel": "tower.Model"}
    edit(tower / "config.json", model_type="mine", auto_map=auto_map)


def break_template(folder: Path) -> None:
    edit(folder / "config.json", chat_template=None)
    edit(folder / "llm" / "tokenizer_config.json", chat_template="{{ raise_exception('no system role') }}")
    (folder / "llm" / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")


def quantise(folder: Path) -> None:
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(folder / "vision_tower" / "config.json", quantization_config=bits)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "no part": (lambda f: shutil.rmtree(f / "mm_projector"), "has no mm_projector/: not a VILA checkpoint"),
    "no projector": (lambda f: (f / "mm_projector" / "model.safetensors").unlink(), "projector's weights"),
    "other model": (lambda f: edit(f / "config.json", model_type="llava"), "model_type is 'llava', not 'vila'"),
    "other projector": (lambda f: edit(f / "mm_projector" / "config.json", mm_projector_type="linear"), "'linear' is"),
    "other width": (lambda f: edit(f / "config.json", mm_hidden_size=40), r"does not fit 40 -> 64: .*size mismatch"),
    "other template": (lambda f: edit(f / "config.json", chat_template="vicuna_v1"), "'vicuna_v1' is not known"),
    "other feature": (lambda f: edit(f / "config.json", mm_vision_select_feature="cls"), "'cls' is not"),
    "missing weight": (drop_weight, "vision_tower/ has 1 missing keys, first .*patch_embedding.bias"),
    "unknown weight": (add_weight, r"llm/ has 1 unexpected keys, first model\.layers\.9\.extra"),
    "pickle": (pickle_weights, r"llm/ cannot be read: .*no file named model\.safetensors"),
    "code": (bring_code, "contains custom code which must be executed"),
    "no text": (lambda f: (f / "bestofn.json").write_text('{"question": 5}'), r"must hold \{prompt\} once, got 5"),
    "broken template": (break_template, "its chat template cannot be used: no system role"),
    "quantised": (quantise, "vision_tower/ needs a package: "),
    "bad question": (lambda f: (f / "bestofn.json").write_text('{"question": "yes?"}'), r"must hold \{prompt\} once"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("breakage", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_folder_that_does_not_fit_is_refused(folder: Path, breakage: Callable[[Path], object], message: str) -> None:
    breakage(folder)
    with pytest.raises(JudgeFolderError, match=message):
        Judge.load(folder)


def test_the_revision_names_the_content(folder: Path) -> None:
    first = revision(folder)
    assert first == revision(CHECKPOINT)
    (folder / "README.md").write_text("a card changes no verdict")
    assert revision(folder) == first
    (folder / "bestofn.json").write_text(json.dumps({"question": "{prompt}?", "known_words": ["red", "star"]}))
    assert revision(folder) != first
    assert Judge.load(folder).unknown_words("a Red star, a GREEN one") == ["a", "green", "one"]
