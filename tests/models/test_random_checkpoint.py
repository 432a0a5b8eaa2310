"""Random checkpoints: the published layouts and sizes, the same bytes for the same seed."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from bestofn.models import safetensors_writer as streamed
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.random_init.checkpoint import SANA_1_5, make_random_checkpoint, transformer_tensors
from bestofn.models.random_init.tensors import RandomTensor, write_safetensors


def test_same_seed_same_bytes(tmp_path):
    first, again, other = (make_random_checkpoint("tiny", tmp_path / str(i), seed) for i, seed in enumerate((1, 1, 2)))
    revisions = [Checkpoint.resolve(str(path)).revision for path in (first, again, other)]
    assert revisions[0] == revisions[1] != revisions[2]
    with pytest.raises(ValueError, match="is not empty"):
        make_random_checkpoint("tiny", first)
    with pytest.raises(ValueError, match=r"no layout .sdxl., known are sana1\.5-1\.6b"):
        make_random_checkpoint("sdxl", tmp_path / "new")


def test_transformer_has_the_published_number_of_parameters():
    tensors = transformer_tensors(LinearDiTConfig.from_dict(SANA_1_5))
    assert sum(math.prod(tensor.shape) for tensor in tensors) == 1_604_641_952


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_values_are_scaled_by_their_inputs(dtype, tmp_path):
    tensors = [RandomTensor("w", (300, 4000), dtype, None), RandomTensor("one", (7,), dtype, 1.0)]
    write_safetensors(tmp_path, "model", tensors, seed=0)
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(weights["one"].float(), torch.ones(7))
    w = weights["w"].float()
    assert 0.5 < w.std() * math.sqrt(4000) < 1.6
    assert abs(w.mean()) < 0.01 * w.std()


def test_large_parts_are_sharded_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "SHARD_BYTES", 100)
    write_safetensors(tmp_path, "model", [RandomTensor(name, (10, 3), "BF16", None) for name in "abc"], seed=0)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 180
    assert index["weight_map"]["a"] == "model-00001-of-00003.safetensors"
    assert {name for file in set(index["weight_map"].values()) for name in load_file(tmp_path / file)} == {*"abc"}


def test_without_a_seed_matrices_are_holes_in_files_of_the_same_layout(tmp_path):
    hollow, drawn = (make_random_checkpoint("tiny", tmp_path / str(seed), seed) for seed in (None, 1))
    for file in hollow.rglob("*.safetensors"):
        ours, theirs = load_file(file), load_file(drawn / file.relative_to(hollow))
        assert {name: (w.shape, w.dtype) for name, w in ours.items()} == {
            n: (w.shape, w.dtype) for n, w in theirs.items()
        }
        assert all(torch.equal(w, theirs[name]) or (w.ndim > 1 and not w.any()) for name, w in ours.items())
