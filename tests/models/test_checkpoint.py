"""Names to folders, revisions, call defaults, dtypes and residency."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bestofn.models.autoencoder import Decoder
from bestofn.models.checkpoint import CallDefaults, Checkpoint, importance_order
from bestofn.models.defaults import part_dtypes
from bestofn.models.depth.pruning import store_importance
from bestofn.models.errors import CheckpointError
from bestofn.models.generator import Generator
from bestofn.models.instruction import COMPLEX_HUMAN_INSTRUCTION
from bestofn.models.residency import stored_dtype, to_release, weight_bytes
from bestofn.models.text import load_text_encoder
from bestofn.service.doctor.checkpoints import locate


@pytest.fixture
def folder(tiny_checkpoints, tmp_path):
    return shutil.copytree(tiny_checkpoints["tiny"], tmp_path / "checkpoint")


def test_revision_follows_weights_and_configs_only(folder):
    first = Checkpoint.resolve(str(folder))
    assert len(first.revision) == 12
    (folder / "README.md").write_text("notes")
    assert Checkpoint.resolve(str(folder)).revision == first.revision
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert Checkpoint.resolve(str(folder)).revision != first.revision


@pytest.mark.parametrize("plain", [None, {}, []])
def test_quantised_part_is_refused_and_an_empty_entry_means_plain_weights(folder, plain):
    config = folder / "text_encoder" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(CheckpointError, match="text_encoder is quantised with awq: SANA is read from plain weights"):
        Checkpoint.resolve(str(folder))
    config.write_text(json.dumps(fields | {"quantization_config": plain}))
    assert Checkpoint.resolve(str(folder)).path == folder


def test_call_defaults_come_from_bestofn_json_else_diffusers(folder):
    calls = Checkpoint.resolve(str(folder)).call_defaults()
    assert calls == CallDefaults(4, 4.5, 48, COMPLEX_HUMAN_INSTRUCTION)
    (folder / "bestofn.json").unlink()
    assert Checkpoint.resolve(str(folder)).call_defaults() == CallDefaults(20, 4.5, 300, COMPLEX_HUMAN_INSTRUCTION)
    (folder / "bestofn.json").write_text(json.dumps({"steps": 3}))
    with pytest.raises(CheckpointError, match="unknown field 'steps', known are num_inference_steps"):
        Checkpoint.resolve(str(folder)).call_defaults()


def test_checkpoint_with_measured_importance_keeps_its_revision(folder):
    checkpoint = Checkpoint.resolve(str(folder))
    assert checkpoint.block_importance() is None
    store_importance(checkpoint, [0.25, 0.5], "here")
    assert Checkpoint.resolve(str(folder)) == checkpoint
    assert checkpoint.block_importance() == (0.25, 0.5)
    assert importance_order([0.25, 0.5, 0.25]) == [1, 0, 2]
    for wrong in ('{"block_importance": [1]}', '{"block_importance": [1, NaN]}', '{"block_importance": "12"}', "{}"):
        (folder / "importance.json").write_text(wrong)
        with pytest.raises(CheckpointError, match="must hold block_importance, 2 numbers: `bestofn models imp"):
            checkpoint.block_importance()
    assert Checkpoint.resolve("shapes").block_importance() is not None


def test_checkpoint_with_a_missing_part_names_it(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint 'nowhere': nowhere is not a folder"):
        Checkpoint.resolve("nowhere")
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match="has no 'vae'"):
        Checkpoint.resolve(str(folder))
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(CheckpointError, match="'FluxPipeline' is not supported"):
        Checkpoint.resolve(str(folder))


def test_quantised_sana_is_refused_and_doctor_says_so(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(CheckpointError, match="is quantised with torchao: SANA is read from plain weights only"):
        Checkpoint.resolve(str(copy))
    assert "transformer is quantised with torchao" in locate(str(copy)).broken[0]


def test_hub_name_is_looked_up_in_the_cache_when_offline(folder, tmp_path):
    """A stand-in for a downloaded repository: the hub's cache layout, read in a process of its own."""
    commit = "9468102c3cebb657f8c4b5f1e5a71e989a15f10d"
    repository = tmp_path / "hub" / "models--owner--sana"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    script = (
        "from bestofn.models.checkpoint import Checkpoint\n"
        f"print(Checkpoint.resolve('owner/sana').revision, Checkpoint.resolve('owner/sana@{commit}').revision)\n"
        "try: Checkpoint.resolve('owner/other@v2')\n"
        "except ValueError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    found, missing = done.stdout.splitlines()
    assert found == f"{commit} {commit}"
    assert "owner/other@v2 was not found in the local cache (HF_HUB_OFFLINE is set)" in missing


def test_gemma_and_autoencoder_never_run_in_float16():
    assert set(part_dtypes(torch.device("cpu"), "F16").values()) == {torch.float32}
    gpu = part_dtypes(torch.device("cuda"), "F16")
    assert gpu == {"text_encoder": torch.bfloat16, "transformer": torch.float16, "decoder": torch.bfloat16}
    assert set(part_dtypes(torch.device("cuda"), "BF16").values()) == {torch.bfloat16}


@pytest.mark.parametrize("variant", ["model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"])
def test_a_variant_in_another_dtype_counts_for_nothing(variant, tmp_path):
    save_file({"weight": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    save_file({"weight": torch.zeros(4, 2).half(), "more": torch.zeros(3).half()}, tmp_path / variant)
    assert stored_dtype(tmp_path) == "F32"
    assert weight_bytes(tmp_path, 2) == 16


def test_parts_give_way_in_the_order_of_their_use():
    sizes = {"text_encoder": 10, "transformer": 6, "decoder": 1}
    assert to_release("decoder", sizes, ["text_encoder", "transformer"], 17) == []
    assert to_release("decoder", sizes, ["text_encoder", "transformer"], 16) == ["text_encoder"]
    assert to_release("text_encoder", sizes, ["transformer", "decoder"], 16) == ["decoder"]
    assert to_release("text_encoder", sizes, ["transformer", "decoder"], 3) == ["decoder", "transformer"]


def test_parts_that_do_not_fit_take_turns_with_a_warning(tiny_checkpoints):
    drawn = []
    for budget, warned in (
        (None, nullcontext()),
        (1, pytest.warns(RuntimeWarning, match=r"do not fit 0\.0 GiB together and take turns in memory")),
    ):
        generator = Generator.load(str(tiny_checkpoints["tiny"]), memory_budget=budget)
        generator.warm_up()
        with warned:
            context, _ = generator.prompt_contexts([("a cat", False), ("", True)])
            drawn.append((context.keys, generator.decode(torch.zeros(1, 8, 8, 8))))
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_a_checkpoint_whose_parts_do_not_fit_each_other_is_refused(folder):
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": 4}))
    with pytest.raises(CheckpointError, match="takes 8 latent channels, the autoencoder makes 4"):
        Generator.load(str(folder))


@pytest.mark.parametrize(
    ("weights", "pickled", "load"),
    [
        ("text_encoder/model", "pytorch_model.bin", load_text_encoder),
        ("vae/diffusion_pytorch_model", "diffusion_pytorch_model.bin", Decoder.load),
    ],
    ids=["text encoder", "autoencoder"],
)
def test_pickled_weights_are_not_fallen_back_on(folder, weights, pickled, load):
    path = folder / f"{weights}.safetensors"
    torch.save(load_file(path), path.with_name(pickled))
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"no file named {path.name}"):
        load(path.parent, torch.device("cpu"), torch.float32)


def test_memory_of_a_cpu_is_the_limit_of_the_process_own_control_group() -> None:
    place = next((place for place in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if place.is_dir()), Path())
    group = place / f"bestofn-test-{os.getpid()}"
    limit = group / ("memory.limit_in_bytes" if place.name == "memory" else "memory.max")
    try:
        group.mkdir()
        limit.write_text(str(2 * 2**30))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        program = "import torch; from bestofn.models.residency import memory_bytes as m; print(m(torch.device('cpu')))"
        join = f'echo $$ > {group}/cgroup.procs; exec {sys.executable} -P -c "{program}"'
        assert subprocess.run(["sh", "-c", join], capture_output=True, text=True, check=True).stdout == f"{2 * 2**30}\n"
    finally:
        group.rmdir()
