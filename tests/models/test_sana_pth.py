"""SANA's own .pth layout: there and back gives the same velocity, and whatever does not fit is named."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import ModelError
from bestofn.models.generator import Generator
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import from_diffusers, to_diffusers_state_dict
from bestofn.models.random_init.checkpoint import TINY_TRANSFORMER, make_random_checkpoint
from bestofn.models.sana_pth import CROSS_HEADS, UNUSED, config_of, convert, converted, read_pth, source_of

SPRINT = {"guidance_embeds": True}
VARIANTS = {"1.5": {}, "1.0": {"qk_norm": None}, "sprint": SPRINT, "patch 2": {"patch_size": 2, "attention_bias": True}}


def in_sana_layout(model):
    """The state dict of the original repository, with what only training reads."""
    pieces = {}
    for name, value in to_diffusers_state_dict(model).items():
        source, part, parts = source_of(name)
        pieces.setdefault(source, [None] * parts)[part] = value
    state = {name: torch.cat(parts) for name, parts in pieces.items()}
    return state | dict.fromkeys(UNUSED, torch.zeros(3))


@pytest.fixture
def tiny():
    """A random model of a variant and its config."""

    def tiny(name="1.5"):
        torch.manual_seed(3)
        config = LinearDiTConfig.from_dict(TINY_TRANSFORMER | VARIANTS[name])
        model = LinearDiT(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return model, config

    return tiny


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_round_trip_gives_the_same_velocity(name, tiny, tmp_path):
    model, config = tiny(name)
    torch.save({"state_dict": in_sana_layout(model), "epoch": 3}, tmp_path / "sana.pth")
    base = make_random_checkpoint("tiny", tmp_path / "base", 0, {"transformer": VARIANTS[name]} | sprint(name))
    made = convert(tmp_path / "sana.pth", tmp_path / "out", base=Checkpoint.resolve(str(base)))
    assert made == config
    again = from_diffusers(tmp_path / "out" / "transformer")
    text = model.prompt_context(torch.randn(2, 7, config.caption_channels), torch.ones(2, 7))
    inputs = torch.randn(2, config.in_channels, 8, 8), torch.tensor([999.0, 10.0]), text
    guidance = torch.ones(2) if config.guidance_embeds else None
    assert torch.equal(again(*inputs, guidance), model(*inputs, guidance))
    assert Generator.load(str(tmp_path / "out")).defaults.width == config.sample_size * 4
    with pytest.raises(ModelError, match="name a new folder"):
        convert(tmp_path / "sana.pth", tmp_path / "out")


def sprint(name):
    scheduler = {"_class_name": "SCMScheduler", "prediction_type": "trigflow"}
    return {"scheduler": scheduler} if name == "sprint" else {}


@pytest.mark.parametrize("width", CROSS_HEADS)
def test_published_widths_need_no_base(width):
    """The names and shapes of the published 0.6B and 1.6B, without their values."""
    with torch.device("meta"):
        model = LinearDiT(LinearDiTConfig.from_dict({
            "num_layers": 2, "qk_norm": "rms_norm_across_heads", "num_attention_heads": width // 32,
            "cross_attention_dim": width, "num_cross_attention_heads": CROSS_HEADS[width],
            "cross_attention_head_dim": width // CROSS_HEADS[width],
        }))  # fmt: skip
    state = in_sana_layout(model)
    config = config_of(state, 4096)
    assert (config.width, config.mlp_ratio, config.sample_size, config.interpolation_scale) == (width, 2.5, 128, 2.0)
    assert {name: value.shape for name, value in converted(state, config).items()} == {
        name: value.shape for name, value in to_diffusers_state_dict(model).items()
    }


def test_an_original_name_for_each_part_of_the_published_checkpoints():
    """As the original repository spells them."""
    assert source_of("transformer_blocks.7.attn1.to_v.weight") == ("blocks.7.attn.qkv.weight", 2, 3)
    assert source_of("transformer_blocks.7.attn2.to_k.bias") == ("blocks.7.cross_attn.kv_linear.bias", 0, 2)
    assert source_of("transformer_blocks.0.ff.conv_depth.bias") == ("blocks.0.mlp.depth_conv.conv.bias", 0, 1)
    assert source_of("transformer_blocks.19.scale_shift_table") == ("blocks.19.scale_shift_table", 0, 1)
    assert source_of("time_embed.guidance_embedder.linear_2.weight") == ("cfg_embedder.mlp.2.weight", 0, 1)
    assert source_of("scale_shift_table") == ("final_layer.scale_shift_table", 0, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("blocks.1.attn.proj.bias"), "1 weights are missing: blocks.1.attn.proj.bias"),
        (lambda s: s.update(extra=torch.ones(1)), "1 weights are left over: extra"),
        (lambda s: s.update({"t_block.1.bias": torch.ones(5)}), r"'time_embed.linear.bias' has shape \(5,\)"),
        (lambda s: s.update({"t_block.1.bias": s["t_block.1.bias"].to(torch.int8)}), "'t_block.1.bias' is torch.int8"),
        (lambda s: s.pop("x_embedder.proj.weight"), "not a SANA in its own .pth layout"),
    ],
)
def test_sana_pth_weight_that_does_not_fit_is_named(change, said, tiny):
    model, like = tiny()
    state = in_sana_layout(model)
    change(state)
    with pytest.raises(ModelError, match=said):
        converted(state, config_of(state, 1024, like))


def test_heads_that_no_weight_shows_must_come_from_a_base(tiny):
    with pytest.raises(ModelError, match=r"the heads of width 64 are not known: name .* with --base"):
        config_of(in_sana_layout(tiny()[0]), 1024)


class Code:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_run_and_other_files_are_refused_by_name(tiny, tmp_path):
    path = tmp_path / "bad.pth"
    torch.save({"state_dict": {"x": Code(tmp_path / "made")}}, path)
    with pytest.raises(ModelError, match=r"bad.pth is refused: it holds more than tensors"):
        read_pth(path)
    assert not (tmp_path / "made").exists()
    for content, said in (
        (pickle.dumps(Code(tmp_path / "made")), "fetch it again"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=said):
            read_pth(path)
    assert not (tmp_path / "made").exists()
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="holds no state dict"):
        read_pth(path)
    torch.save({"state_dict": in_sana_layout(tiny()[0])}, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"bad.pth"):
        read_pth(path)


def test_stored_dtypes_are_kept(tiny, tmp_path):
    model, _ = tiny()
    torch.save(in_sana_layout(model.to(torch.bfloat16)), tmp_path / "sana.pth")
    base = Checkpoint.resolve(str(make_random_checkpoint("tiny", tmp_path / "base", 0)))
    convert(tmp_path / "sana.pth", tmp_path / "out", base=base)
    stored = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    for name, value in to_diffusers_state_dict(model).items():
        assert torch.equal(stored[name], value)
