"""Growth and pruning: what is written is plain diffusers', and it computes what it should from the first step on."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import SanaPipeline
from safetensors.torch import load_file

from bestofn.models import safetensors_writer as streamed
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.depth.growth import grow, grown_blocks, target_layers
from bestofn.models.depth.pruning import block_importance, kept_blocks, prune, store_importance
from bestofn.models.errors import CheckpointError, ModelError
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.weights import from_diffusers
from bestofn.models.random_init.checkpoint import make_random_checkpoint
from bestofn.models.sampling import generate

# diffusers' schedulers, numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint of five layers."""
    folder = tmp_path_factory.mktemp("depth") / "source"
    return Checkpoint.resolve(str(make_random_checkpoint("tiny", folder, 3, {"transformer": {"num_layers": 5}})))


def velocity(folder):
    model = from_diffusers(folder / "transformer")
    draw = torch.Generator().manual_seed(1)
    embeds, mask = torch.randn(2, 6, 48, generator=draw), torch.ones(2, 6)
    latent = torch.randn(2, 8, 8, 8, generator=draw)
    with torch.inference_mode():
        return model(latent, torch.tensor([900.0, 300.0]), model.prompt_context(embeds, mask))


def test_partial_preservation_starts_from_the_shortened_source(source, tmp_path):
    grown = grow(source, tmp_path / "grown", 10)
    short = prune(source, tmp_path / "short", [0, 1, 2])
    assert torch.equal(velocity(grown), velocity(short))
    assert not torch.allclose(velocity(grown), velocity(source.path))
    state = load_file(grown / "transformer" / "diffusion_pytorch_model.safetensors")
    new = {name.partition("9.")[2]: w.float() for name, w in state.items() if name.startswith("transformer_blocks.9.")}
    assert {name for name, w in new.items() if not w.any()} == {
        "attn1.to_out.0.weight", "attn1.to_out.0.bias", "attn2.to_out.0.weight", "attn2.to_out.0.bias",
        "attn2.to_q.bias", "attn2.to_k.bias", "attn2.to_v.bias", "ff.conv_point.weight",
    }  # fmt: skip
    assert all((new[f"attn{i}.norm_{x}.weight"] == 1).all() for i in (1, 2) for x in "qk")
    assert abs(new["ff.conv_depth.weight"].std() - 0.2) < 0.02
    assert abs(new["ff.conv_inverted.weight"].std() - 0.02) < 0.002
    assert not torch.equal(new["attn1.to_q.weight"], new["attn1.to_k.weight"])


def test_blocks_of_the_grown_model():
    assert grown_blocks("partial", 20, 60)[16:20] == [16, 17, None, None]
    assert grown_blocks("cyclic", 3, 7) == [0, 1, 2, 0, 1, 2, 0]
    assert grown_blocks("block", 3, 9) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (target_layers("3x", 20), target_layers("25", 20)) == (60, 25)
    for arguments, message in [
        (("partial", 2, 4), "drop 0 to 1 of them, got 2"),
        (("block", 6, 6), "has 6 layers: grow it to more than that, got 6"),
    ]:
        with pytest.raises(ModelError, match=message):
            grown_blocks(*arguments)
    with pytest.raises(ModelError, match="a multiple such as 2x or a number of layers such as 60, got 'twice'"):
        target_layers("twice", 6)


@pytest.mark.parametrize("method", ["partial", "cyclic", "block"])
def test_diffusers_loads_what_is_written(source, tmp_path, method, monkeypatch):
    monkeypatch.setattr(streamed, "SHARD_BYTES", 200_000)  # several shards and their index
    grown = grow(source, tmp_path / "grown", 8, method)
    store_importance(source, [1.0] * 5, "not of the result")
    pruned = prune(source, tmp_path / "pruned", [0, 4])
    assert Checkpoint.resolve(str(pruned)).block_importance() is None
    for folder, layers in ((grown, 8), (pruned, 2)):
        assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
        pipeline = SanaPipeline.from_pretrained(folder)
        assert len(pipeline.transformer.transformer_blocks) == layers
        for name, weight in from_diffusers(folder / "transformer").named_parameters():
            assert torch.equal(weight.flatten(), pipeline.transformer.get_parameter(name).float().flatten()), name
        assert Generator.load(str(folder)).defaults == Generator(source).defaults


def test_a_pruned_read_only_checkpoint_can_be_deleted(source, tmp_path):
    read_only = tmp_path / "source"
    shutil.copytree(source.path, read_only)
    for path in (*read_only.rglob("*"), read_only):
        path.chmod(path.stat().st_mode & ~0o222)
    prune(Checkpoint.resolve(str(read_only)), tmp_path / "out", [0, 2])
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "out").rglob("*"))


def test_pruned_model_keeps_the_chosen_blocks(source, tmp_path):
    model, pruned = (
        from_diffusers(folder / "transformer") for folder in (source.path, prune(source, tmp_path / "out", [1, 2, 4]))
    )
    for mine, theirs in enumerate((1, 2, 4)):
        for name, weight in pruned.transformer_blocks[mine].named_parameters():
            assert torch.equal(weight, model.transformer_blocks[theirs].get_parameter(name))


def test_a_block_that_does_nothing_is_the_first_to_go(source, tmp_path):
    grown = Generator.load(str(grow(source, tmp_path / "grown", 7, dropped=0)))
    importance = block_importance(grown, ["a cat", "two dogs"], num_inference_steps=2)
    assert len(importance) == 7
    assert max(importance[5:]) < 1e-6 < min(importance[:5])
    assert kept_blocks(importance, 5) == [0, 1, 2, 3, 4]
    assert kept_blocks([0.3, 0.1, 0.1, 0.2], 2) == [0, 3]
    with pytest.raises(ModelError, match="has 7 layers: keep 1 to 6, got 7"):
        kept_blocks(importance, 7)


def test_importance_is_one_less_the_mean_cosine(source):
    """Against hidden states collected from diffusers' own transformer over its own pipeline."""
    pipeline = SanaPipeline.from_pretrained(source.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    turned = [[] for _ in range(5)]
    for i, block in enumerate(pipeline.transformer.transformer_blocks):

        def hook(module, inputs, out, i=i):
            x, y = inputs[0], out
            turned[i].append(float(1 - ((x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)).mean()))

        block.register_forward_hook(hook)
    generator = Generator(source)
    ours = block_importance(generator, ["a cat"], seed=5, num_inference_steps=3)
    pipeline(
        "a cat",
        num_inference_steps=3,
        height=generator.defaults.height,
        width=generator.defaults.width,
        max_sequence_length=48,
        use_resolution_binning=False,
        generator=torch.Generator("cpu").manual_seed(5),
    )
    theirs = [sum(values) / len(values) for values in turned]
    assert len(turned[0]) == 3
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_few_blocks_are_the_pruned_model_without_a_copy(source, tmp_path):
    """One resident checkpoint, two depths in turn: the same images as the pruned checkpoint's, no further weights."""
    whole, pruned = Generator(source), Generator.load(str(prune(source, tmp_path / "out", [0, 2, 4])))
    options = {"num_inference_steps": 3, "guidance_scale": 3.0}
    full = generate(whole, "a cat", [1, 2], **options)
    weights = {p.data_ptr() for p in whole.denoiser.parameters()}
    assert torch.equal(
        generate(whole, "a cat", [1, 2], layers=[0, 2, 4], **options), generate(pruned, "a cat", [1, 2], **options)
    )
    assert {p.data_ptr() for p in whole.denoiser.parameters()} == weights
    assert torch.equal(generate(whole, "a cat", [1, 2], **options), full)


def test_a_failed_write_leaves_nothing_behind(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="full is not empty: name a new folder"):
        grow(source, tmp_path / "full", 8)
    broken = make_random_checkpoint("tiny", tmp_path / "broken", 3)
    path = broken / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 3}))
    with pytest.raises(CheckpointError, match=r"no weight 'transformer_blocks\.2\."):
        grow(Checkpoint.resolve(str(broken)), tmp_path / "out", 8)
    cut = make_random_checkpoint("tiny", tmp_path / "cut", 3)
    weights = cut / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"is cut off at 99%: copy or download it again"):
        grow(Checkpoint.resolve(str(cut)), tmp_path / "out", 8, "cyclic")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "cut", "full"]


def test_memory_is_bounded_whatever_the_size(tmp_path):
    """A transformer of 99 MiB grows to twice that and is pruned to half in 32 MiB beyond the imports."""
    wide = {"num_attention_heads": 16, "attention_head_dim": 32, "num_layers": 16, "cross_attention_dim": 512}
    source = make_random_checkpoint("tiny", tmp_path / "source", 0, {"transformer": wide})
    assert (source / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size > 96 * 2**20
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from bestofn.models.checkpoint import Checkpoint\n"
        "from bestofn.models.depth.growth import grow\n"
        "from bestofn.models.depth.pruning import prune\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "source, out = Checkpoint.resolve(sys.argv[1]), Path(sys.argv[2])\n"
        "before = peak()\n"
        "grow(source, out / 'grown', 32)\n"
        "prune(source, out / 'pruned', range(8))\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", script, str(source), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 32 * 2**20
    assert (tmp_path / "grown" / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size > 192 * 2**20
