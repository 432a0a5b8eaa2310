"""Damaged checkpoints: every loader names the file and what is wrong with it, and a download takes what is read."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bestofn.judge.layout import PARTS
from bestofn.judge.loader import JudgeFolderError
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import ModelError
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.weights import from_diffusers
from bestofn.models.weight_files import weight_files
from bestofn.service.engine.judge_loader import find_judge
from tests.hub import hub

JUDGE = Path(__file__).parent.parent / "fixtures" / "vila" / "checkpoint"
NOT_READ = {"special_tokens_map.json", "generation_config.json", "added_tokens.json", "vocab.json"}  # by no loader
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.fixture
def generator(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoints["tiny"], tmp_path / "generator"))


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    return Path(shutil.copytree(JUDGE, tmp_path / "judge"))


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flood_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: os.truncate(file, 0), "is empty"),
    "pointer": (lambda file: file.write_bytes(POINTER), "is a Git LFS pointer, .* run `git lfs pull`"),
}
WEIGHT_DAMAGES = DAMAGES | {
    "half": (halve, "is cut off (at 5[0-9]%|within its header)"),
    "header": (lambda file: file.write_bytes(b"\x09" + 7 * b"\0" + b'{"a": [1]'), "its header cannot be read"),
    "long header": (flood_header, "is not a safetensors file"),
    "missing": (Path.unlink, r"(does not exist|has no weights)"),
}


@pytest.mark.parametrize(("damage", "message"), WEIGHT_DAMAGES.values(), ids=WEIGHT_DAMAGES)
@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_generator_with_damaged_weights_is_refused_by_file(
    generator: Path, part: str, damage: Callable[[Path], object], message: str
) -> None:
    file = next((generator / part).glob("*.safetensors"))
    damage(file)
    with pytest.raises(ModelError, match=rf"{generator / part}.* {message}") as caught:
        Checkpoint.resolve(str(generator))
    assert "\n" not in str(caught.value)


def spoil(part: Path, value: float, dtype: torch.dtype | None = None) -> str:
    """Put a value into the last of a part's weights, stored as another dtype; returns the weight's name."""
    file = next(part.glob("*.safetensors"))
    weights = load_file(file)
    name: str = max(name for name in weights if not name.startswith("encoder."))  # DC-AE's, which is dropped
    weights[name] = weights[name].to(dtype or weights[name].dtype)
    weights[name].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_generator_with_a_weight_that_is_not_finite_is_refused(generator: Path, part: str, value: float) -> None:
    name = spoil(generator / part, value)
    loaded = Generator.load(str(generator))
    with pytest.raises(ModelError) as caught:
        getattr(loaded, {"transformer": "denoiser", "vae": "decoder"}.get(part, part))
    assert str(caught.value) == f"{generator / part}: weight {name!r} has a value that is not finite in float32"


def test_weight_that_overflows_in_float16_is_refused_in_that_dtype_alone(generator: Path) -> None:
    name = spoil(generator / "transformer", 1e5, torch.bfloat16)
    assert from_diffusers(generator / "transformer", dtype=torch.bfloat16).training is False
    with pytest.raises(ModelError, match=f"weight '{name}' has a value that is not finite in float16"):
        from_diffusers(generator / "transformer", dtype=torch.float16)


@pytest.mark.parametrize(("damage", "message"), WEIGHT_DAMAGES.values(), ids=WEIGHT_DAMAGES)
@pytest.mark.parametrize("part", PARTS)
def test_judge_with_damaged_weights_is_refused_by_file(
    judge: Path, part: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(judge / part / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{judge / part}.* {message}"):
        find_judge(str(judge))


@pytest.mark.parametrize("damage", ["empty", "pointer", "half"])
def test_small_file_that_is_damaged_is_refused_in_one_line(generator: Path, judge: Path, damage: str) -> None:
    hurt = (DAMAGES | {"half": (halve, "")})[damage][0]
    loads: dict[Path, Callable[[], object]] = {
        generator: lambda: Generator.load(str(generator)).warm_up(),
        judge: lambda: find_judge(str(judge)).load(torch.device("cpu")),
    }
    for folder, load in loads.items():
        for file in sorted(folder.rglob("*")):
            if file.suffix not in {".json", ".model"} or file.name in NOT_READ:
                continue
            whole = file.read_bytes()
            hurt(file)
            with pytest.raises((ModelError, JudgeFolderError), match=re.escape(str(file.parent))) as caught:
                load()
            assert "\n" not in str(caught.value)
            file.write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "../vae/diffusion_pytorch_model.safetensors", "/etc/a.safetensors"]
)
def test_index_that_names_another_kind_or_folder_is_refused(generator: Path, name: str) -> None:
    index = generator / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=f"names '{name}': only safetensors files of the same folder are read"):
        Checkpoint.resolve(str(generator))


VALUES: dict[str, tuple[str, dict[str, Any], str]] = {
    "patch size": ("transformer/config.json", {"patch_size": 0}, "patch_size = 0 is not supported, only a whole"),
    "text for a number": ("transformer/config.json", {"num_layers": "2"}, "num_layers = '2' is not supported"),
    "endless number": ("transformer/config.json", {"norm_eps": float("inf")}, "norm_eps = inf is not supported"),
    "guidance": ("bestofn.json", {"guidance_scale": float("nan")}, "guidance_scale = nan, a finite number"),
    "steps": ("bestofn.json", {"num_inference_steps": 0}, "num_inference_steps = 0, a whole number above 0"),
    "scale": ("vae/config.json", {"scaling_factor": 0}, "scaling_factor = 0, a finite number above 0 is needed"),
    "shift": ("scheduler/scheduler_config.json", {"flow_shift": float("nan")}, "flow_shift = nan, a finite number"),
    "levels": ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "num_train_timesteps = 0, a whole"),
    "class": ("model_index.json", {"tokenizer": "GemmaTokenizer"}, "tokenizer must be .library, class., got 'Gemma"),
}


@pytest.mark.parametrize(("file", "fields", "message"), VALUES.values(), ids=VALUES)
def test_config_value_that_nothing_can_be_drawn_with_is_refused(
    generator: Path, file: str, fields: dict[str, Any], message: str
) -> None:
    path = generator / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ModelError, match=message):
        Generator.load(str(generator)).warm_up()


def test_path_that_exists_is_never_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "sana.pth").write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    for look in (Checkpoint.resolve, find_judge):
        with pytest.raises(
            ModelError,
            match=r"owner/sana\.pth is a file, and a (checkpoint|judge) is a folder: `bestofn models convert owner/",
        ):
            look("owner/sana.pth")


def test_download_takes_the_files_that_the_index_names(generator: Path, tmp_path: Path) -> None:
    """Published folders hold further copies; they cost gigabytes, and no loader reads them."""
    single = generator / "text_encoder" / "model.safetensors"
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in shards:
        shutil.copy(single, single.with_name(name))
    single.unlink()
    index = {"weight_map": {str(i): name for i, name in enumerate(shards)}}
    single.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    extras = [
        "text_encoder/model.bf16-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.int4.safetensors",
    ]
    extras += ["vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"]
    for name in extras:
        (generator / name).write_bytes(b"not read")
    script = (
        "from bestofn.models import hub\n"
        "print(hub.cached('owner/sana'), hub.bytes_to_download('owner/sana@main'))\n"
        "folder = hub.download('owner/sana')\n"
        "print(hub.bytes_to_download('owner/sana@main'), hub.cached('owner/sana') == folder)\n"
        "print(*sorted(str(file.relative_to(folder)) for file in folder.rglob('*.*') if file.suffix != '.json'))\n"
    )
    with hub({"owner/sana": generator}) as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-Pc", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, files = done.stdout.splitlines()
    wanted = [path for part in ("text_encoder", "transformer", "vae") for path in weight_files(generator / part)]
    assert first == f"None {sum(path.stat().st_size for path in wanted)}"
    assert second == "0 True"
    assert [name for name in files.split() if name.endswith((".safetensors", ".bin"))] == [
        str(path.relative_to(generator)) for path in wanted
    ]
