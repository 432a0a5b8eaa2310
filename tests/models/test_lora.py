"""LoRA files in diffusers' layout: what they add to which weight, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bestofn.models.errors import CheckpointError
from bestofn.models.linear_dit.weights import from_diffusers, to_diffusers_state_dict
from bestofn.models.lora import FILE, METADATA, Lora, listed, missing, split_strength
from bestofn.service.core.settings import Settings
from bestofn.service.engine.loader import load_engine

QUERY = "transformer_blocks.0.attn1.to_q"
POINT = "transformer_blocks.1.ff.conv_point"  # a convolution of one pixel


def write(file: Path, facts: dict[str, object] | None = None, **more: torch.Tensor) -> Path:
    """A LoRA of rank 2 for two modules of the tiny checkpoint."""
    weights = load_file(tiny(file) / "transformer" / "diffusion_pytorch_model.safetensors")
    dice = torch.Generator().manual_seed(0)
    halves: dict[str, torch.Tensor] = {}
    for module in (QUERY, POINT):
        out, into, *kernel = weights[f"{module}.weight"].shape
        halves[f"transformer.{module}.lora_A.weight"] = torch.randn(2, into, *kernel, generator=dice)
        halves[f"transformer.{module}.lora_B.weight"] = torch.randn(out, 2, *kernel, generator=dice)
    metadata = {"format": "pt"} | ({} if facts is None else {METADATA: json.dumps(facts)})
    save_file(halves | more, file, metadata=metadata)
    return file


def tiny(file: Path) -> Path:
    return file.parent / "checkpoint"


@pytest.fixture
def file(tiny_checkpoints, tmp_path) -> Path:
    shutil.copytree(tiny_checkpoints["tiny"], tmp_path / "checkpoint")
    return tmp_path / "ink.safetensors"


@pytest.mark.parametrize(
    ("facts", "scales"),
    [
        (None, (1, 1)),
        ({"transformer.r": 2, "transformer.lora_alpha": 6}, (3, 3)),
        ({"transformer.lora_alpha": 6, "transformer.use_rslora": True}, (6 / 2**0.5, 6 / 2**0.5)),
        ({"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"attn1.to_q": 1}}, (0.5, 3)),
    ],
    ids=["no alpha", "alpha", "rank-stabilised", "alpha of a module"],
)
def test_lora_merged_adds_alpha_by_rank_times_the_product(file: Path, facts, scales) -> None:
    write(file, facts)
    halves = load_file(file)
    plain, changed = (
        to_diffusers_state_dict(from_diffusers(tiny(file) / "transformer", loras=loras))
        for loras in ([], [Lora.resolve(f"{file}=0.5"), Lora.resolve(str(file))])
    )
    for name, weight in plain.items():
        module = name.removesuffix(".weight")
        update = torch.zeros_like(weight)
        if module in (QUERY, POINT):
            down, up = (halves[f"transformer.{module}.lora_{half}.weight"].flatten(1) for half in "AB")
            update = (1.5 * scales[module == POINT] * up @ down).reshape(weight.shape)
        torch.testing.assert_close(changed[name], weight + update)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_lora_is_named_after_all_of_its_file_or_folder(file: Path, tmp_path: Path, kind: str, monkeypatch) -> None:
    write(file)
    (tmp_path / "a@b" / "ink-1.5").mkdir(parents=True)
    place = tmp_path / "a@b" / ("ink-1.5.safetensors" if kind == "file" else "ink-1.5")
    shutil.copy(file, place if kind == "file" else place / FILE)
    assert Lora.resolve(f"{place}=0.5").name == "ink-1.5"
    if kind == "folder":
        monkeypatch.chdir(place)
        assert Lora.resolve(".").name == "ink-1.5"


def test_lora_folder_and_file_are_one_revision_which_strength_and_bytes_change(file: Path, tmp_path: Path) -> None:
    write(file)
    (tmp_path / "paint").mkdir()
    shutil.copy(file, tmp_path / "paint" / FILE)
    by_file, by_folder = Lora.resolve(str(file)), Lora.resolve(f"{tmp_path / 'paint'}=1")
    assert (by_file.name, by_folder.name, by_file.revision) == ("ink", "paint", by_folder.revision)
    assert Lora.resolve(f"{file}=0.9").revision != by_file.revision
    assert Lora.resolve(str(write(file, {"transformer.lora_alpha": 4}))).revision != by_file.revision


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"transformer.x.lora_magnitude_vector": torch.ones(2)}, "'transformer.x.lora_magnitude_vector' is not lora_A"),
        ({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "'lora_unet_x.lora_down.weight' is not lora_A or lora_B"),
        (
            {"transformer.x.lora_A.weight": torch.ones(0, 8), "transformer.x.lora_B.weight": torch.ones(8, 0)},
            r"x has lora_A \(0, 8\) and lora_B \(8, 0\): matrices of rank 1 or more are needed",
        ),
        (
            {"transformer.x.lora_A.weight": torch.ones(8), "transformer.x.lora_B.weight": torch.ones(8, 1)},
            r"x has lora_A \(8,\) and lora_B \(8, 1\): matrices of rank 1 or more are needed",
        ),
        ({"transformer.x.lora_A.weight": torch.ones(2, 2)}, "x has lora_A alone"),
        ({f"transformer.{QUERY}.lora_A.weight": torch.ones(3, 2)}, "has rank 3 in lora_A and 2 in lora_B"),
        ({f"transformer.{QUERY}.lora_A.weight": torch.ones(2, 7)}, "the weight is .*; name a LoRA of this model's"),
        ({f"x.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}, "has no matrix 'x.weight' .*; name a LoRA of"),
        ({f"transformer.{QUERY}.lora_B.weight": torch.full((64, 2), torch.inf)}, "with LoRA ink: .* is not finite"),
    ],
    ids=["DoRA", "another layout", "rank 0", "vector", "half", "rank", "shape", "no such module", "infinite"],
)
def test_lora_that_does_not_fit_is_refused(file: Path, more, said) -> None:
    write(file, **more)
    with pytest.raises(CheckpointError, match=said):
        from_diffusers(tiny(file) / "transformer", loras=[Lora.resolve(str(file))])


def test_lora_without_weights_is_refused(file: Path) -> None:
    save_file({}, file)
    with pytest.raises(CheckpointError, match="holds no weights"):
        Lora.resolve(str(file)).updates()


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("{", "lora_adapter_metadata in its header cannot be read: Expecting"),
        ("[1]", "lora_adapter_metadata in its header cannot be read"),
        ('{"transformer.alpha_pattern": 5}', "lora_adapter_metadata in its header cannot be read"),
        ('{"transformer.alpha_pattern": {"(": 5}}', "lora_adapter_metadata in its header cannot be read"),
        ('{"transformer.alpha_pattern": {"to_q": "x"}}', "alpha in its header is 'x', a finite number is needed"),
        ('{"transformer.lora_alpha": "4"}', "alpha in its header is '4', a finite number is needed"),
        ('{"transformer.lora_alpha": null}', "alpha in its header is None, a finite number is needed"),
        ('{"transformer.lora_alpha": NaN}', "alpha in its header is nan, a finite number is needed"),
    ],
)
def test_lora_with_odd_metadata_is_refused(file: Path, metadata: str, said: str) -> None:
    save_file(load_file(write(file)), file, metadata={METADATA: metadata})
    with pytest.raises(CheckpointError, match=said) as caught:
        Lora.resolve(str(file)).updates()
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("text", ["", "=2", "x=", "x=strong", "x=nan", "no/such/folder", "."])
def test_lora_name_that_means_none_is_refused(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        Lora.resolve(text)


def test_lora_setting_is_a_list_of_names_with_strengths(file: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [split_strength(text) for text in listed(" a/b@main=0.5, ./c ,")] == [("a/b@main", 0.5), ("./c", 1.0)]
    assert missing(f"{write(file)}=0.5,a/b@main=0.5") == ["a/b@main"]


def test_engine_with_a_lora_has_a_name_and_revision_of_its_own(file: Path) -> None:
    write(file)
    infos = []
    for lora in ("", f"{file}=0.5"):
        settings = Settings(model=str(tiny(file)), lora=lora, devices="cpu", threads=1)
        infos.append(load_engine(settings).model_info.revision)
    plain, changed = infos
    assert changed.name == f"{plain.name}+lora:ink"
    assert changed.revision == f"{plain.revision}+lora-{Lora.resolve(f'{file}=0.5').revision}" == changed.weights
    assert (changed.checkpoint, changed.loras) == (plain, ["ink"])


def test_evaluation_with_lora_draws_other_candidates_into_a_pool_of_its_own(file: Path, tmp_path, monkeypatch) -> None:
    from bestofn.evaluation.run import EvaluationRun
    from bestofn.evaluation.tasks import Task
    from bestofn.models.sampling import generate

    def opened(lora: str) -> EvaluationRun:
        monkeypatch.setenv("BESTOFN_LORA", lora)
        return EvaluationRun.of(str(tiny(file)), "shapes", "cpu", (Task("a red circle", "one", 0),), tmp_path)

    evaluations = [opened(lora) for lora in ("", f"{write(file)}=0.5")]
    plain, changed = (generate(one.generator, "a red circle", [0], num_inference_steps=2) for one in evaluations)
    assert (plain != changed).any()
    (tmp_path / "pool.jsonl").write_text(json.dumps(evaluations[0].pool.source.identity) + "\n")
    with pytest.raises(ValueError, match="choose another --out"):
        opened(f"{file}=0.5")
