"""`bestofn models check`: sound folders pass, and each kind of damage is named with what it would do."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bestofn.models.errors import CheckpointError
from bestofn.models.random_init.checkpoint import make_random_checkpoint
from bestofn.service.core.errors import BestOfNError
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.findings import Finding
from bestofn.service.doctor.weights.check import check, check_files, folders
from bestofn.service.engine.loader import load_engine

JUDGE = Path(__file__).parents[2] / "fixtures" / "vila" / "checkpoint"
LOADED_AS = {"generator": "model", "judge": "judge"}
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"generator": make_random_checkpoint("tiny", tmp_path_factory.mktemp("tiny") / "tiny"), "judge": JUDGE}


def bad(folder: Path) -> list[Finding]:
    return [finding for finding in check(folder) if finding.state != "ok"]


def test_sound_folders_pass(sound: dict[str, Path], tmp_path: Path) -> None:
    for folder in (*sound.values(), *folders("shapes")):
        assert bad(folder) == [], folder
        assert len(list(check(folder))) > 9
    with pytest.raises(CheckpointError, match="no checkpoint"):
        folders("./nowhere")


def edit(name: str, **fields: Any) -> Damage:
    """Changes fields of a JSON file; those that are None go."""

    def damage(folder: Path) -> None:
        told = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps({field: value for field, value in told.items() if value is not None}))

    return damage


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Changes the weights of a file."""

    def damage(folder: Path) -> None:
        held = load_file(folder / name)
        change(held)
        save_file(held, folder / name)

    return damage


def split_wrongly(folder: Path) -> None:
    """An index that names a weight which its file does not have."""
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    named = dict.fromkeys([*load_file(file), "lost.weight"], file.name)
    file.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": named}))


def shorten(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-500])


def no_template(folder: Path) -> None:
    edit("config.json", chat_template=None)(folder)
    edit("llm/tokenizer_config.json", chat_template=None)(folder)


TRANSFORMER, LLM = "transformer/diffusion_pytorch_model.safetensors", "llm/model.safetensors"
PROJECTOR = "mm_projector/model.safetensors"
DAMAGES: dict[str, tuple[str, Damage, str, str]] = {
    "pipeline": ("generator", edit("model_index.json", _class_name="FluxPipeline"), "model_index", "FluxPipeline"),
    "class": ("generator", edit("model_index.json", vae=["diffusers", "AutoencoderKL"]), "vae", "class AutoencoderKL"),
    "config class": ("generator", edit("vae/config.json", _class_name="AutoencoderKL"), "vae", "config.json has class"),
    "no part": ("generator", lambda f: shutil.rmtree(f / "scheduler"), "scheduler", "does not exist"),
    "cut off": ("generator", shorten(TRANSFORMER), "transformer", "is cut off at"),
    "pointer": (
        "generator",
        lambda f: (f / TRANSFORMER).write_text("version https://git-lfs.github.com/spec/v1"),
        "transformer",
        "git lfs pull",
    ),
    "index": ("generator", split_wrongly, "transformer", "names lost.weight in"),
    "a field": ("generator", edit("transformer/config.json", num_layers=3), "transformer", "are missing"),
    "left over": ("generator", edit("transformer/config.json", num_layers=1), "transformer", "are left over"),
    "a shape": (
        "generator",
        edit("transformer/config.json", caption_channels=32),
        "configs",
        "takes 32, text_encoder makes 48",
    ),
    "quantised": (
        "generator",
        tensors(TRANSFORMER, lambda held: held.update({name: t.to(torch.int8) for name, t in held.items()})),
        "transformer",
        "is I8, one of 62",
    ),
    "text model": (
        "generator",
        edit("text_encoder/config.json", model_type="gemma"),
        "text_encoder",
        "expected 'gemma2'",
    ),
    "tokenizer": ("generator", lambda f: (f / "tokenizer/tokenizer.json").unlink(), "tokenizer", "does not exist"),
    "start token": (
        "generator",
        edit(
            "tokenizer/tokenizer.json",
            post_processor={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False},
        ),
        "tokenizer",
        'encode("") gives 0 tokens',
    ),
    "solver": (
        "generator",
        edit("scheduler/scheduler_config.json", algorithm_type="sde-dpmsolver++"),
        "scheduler",
        "is not supported",
    ),
    "calls": ("generator", edit("bestofn.json", num_inference_steps="many"), "scheduler", "a whole number above 0"),
    "judge kind": ("judge", edit("config.json", model_type="llava"), "config", "expected vila or llava_llama"),
    "judge cut": ("judge", edit("config.json", s2=True), "config", "s2 is set"),
    "template": ("judge", edit("config.json", chat_template="llama_3"), "template", "'llama_3'"),
    "no template": ("judge", no_template, "template", "names no chat_template"),
    "projector kind": (
        "judge",
        edit("mm_projector/config.json", mm_projector_type="linear"),
        "mm_projector",
        "mm_projector_type linear",
    ),
    "projector shape": (
        "judge",
        tensors(PROJECTOR, lambda held: held.update({"layers.7.weight": torch.zeros(64, 32)})),
        "mm_projector",
        "layers.7.weight has shape (64, 32)",
    ),
    "llm kind": ("judge", edit("llm/config.json", model_type="llama"), "llm", "expected 'qwen2'"),
    "llm weights": (
        "judge",
        tensors(LLM, lambda held: held.pop("model.layers.1.mlp.up_proj.weight")),
        "llm",
        "no weight layers.1.mlp.up_proj.weight of shape (128, 64); 1 are missing",
    ),
    "preprocessor": (
        "judge",
        edit("vision_tower/preprocessor_config.json", size=None, crop_size=None),
        "vision_tower",
        "has no size",
    ),
    "tower width": ("judge", edit("config.json", mm_hidden_size=32), "vision_tower", "mm_hidden_size 32"),
}


@pytest.mark.parametrize(("kind", "damage", "what", "said"), DAMAGES.values(), ids=DAMAGES)
def test_each_damage_is_named_with_what_it_would_do(
    kind: str, damage: Damage, what: str, said: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(sound[kind], tmp_path / "folder")
    damage(folder)
    found = [finding for finding in bad(folder) if finding.what == what and said in finding.found]
    assert found, [(finding.what, finding.found) for finding in bad(folder)]
    assert all(finding.fix for finding in bad(folder))
    refused = any(finding.state == "fail" for finding in bad(folder))
    names = {"model": str(sound["generator"]), "judge": str(JUDGE)} | {LOADED_AS[kind]: str(folder)}
    settings = Settings(**names, threads=1, devices="cpu")
    with pytest.raises(BestOfNError) if refused else nullcontext():
        load_engine(settings)


def test_a_judge_whose_tokenizer_splits_image_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(JUDGE, tmp_path / "folder")
    path = folder / "llm" / "tokenizer.json"
    path.write_text(path.read_text().replace('"<image>"', '"<picture>"'))
    assert [f.what for f in bad(folder) if "'<image>' is not one token" in f.found] == ["tokenizer"]


def test_files_are_checked_without_torch(sound: dict[str, Path], tmp_path: Path) -> None:
    """As the weights service does, on the API's image."""
    program = "import sys; sys.modules['torch'] = None; from bestofn.cli.main import app; app()"
    broken = shutil.copytree(sound["generator"], tmp_path / "broken")
    (broken / "vae" / "config.json").unlink()

    def run(folder: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-P", "-c", program, "models", "check", "--json", str(folder)]
        return subprocess.run(command, capture_output=True, text=True)

    good, refused = run(sound["generator"]), run(broken)
    assert good.returncode == 0, good.stderr
    states = {finding["what"]: finding["state"] for finding in json.loads(good.stdout)}
    assert states.pop("names") == "warn"
    assert set(states.values()) == {"ok"}
    assert (refused.returncode, "findings are failures" in refused.stderr) == (1, True)
    assert {f.what for f in check_files(broken) if f.state == "fail"} == {"vae", "configs"}
