"""The linear DiT against diffusers' SanaTransformer2DModel on random weights.

Tolerance: relative error below 1e-5 in float32, the rounding of sums taken in another order.
"""

import json

import pytest
import torch
from diffusers import SanaTransformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bestofn.models.errors import CheckpointError
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import from_diffusers, load_weights, save_diffusers, to_diffusers_state_dict

SMALL = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "num_layers": 3,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 12,
    "cross_attention_dim": 48,
    "caption_channels": 20,
    "sample_size": 8,
}
# name: config, latent height, latent width, true text lengths of the batch
CASES = {
    "plain": ({}, 8, 8, (7, 7)),
    "qk_norm": ({"qk_norm": "rms_norm_across_heads"}, 8, 8, (1, 7)),
    "guidance": ({"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}, 8, 8, (3, 5)),
    "position": ({"interpolation_scale": 1.0}, 8, 8, (7, 2)),
    "position_stretched": ({"interpolation_scale": 2, "patch_size": 2}, 12, 6, (4, 4)),
    "patch_2": ({"patch_size": 2, "sample_size": 16}, 16, 16, (7, 6)),
    "wide": ({"qk_norm": "rms_norm_across_heads"}, 4, 11, (5, 1, 7)),
    "tall_alone": ({"mlp_ratio": 1.7, "attention_bias": True}, 9, 2, (6,)),
    "affine_norm": ({"norm_elementwise_affine": True, "norm_eps": 1e-5}, 5, 5, (2, 3)),
}


def diffusers_model(overrides, seed=0):
    torch.manual_seed(seed)
    model = SanaTransformer2DModel(**(SMALL | overrides)).eval()
    for parameter in model.parameters():  # ones, zeros and small tables would hide a swapped pair
        torch.nn.init.normal_(parameter, std=max(0.3, float(parameter.detach().std(correction=0))))
    return model


def relative_error(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_same_velocity_as_diffusers(name, tmp_path):
    overrides, height, width, lengths = CASES[name]
    theirs = diffusers_model(overrides)
    theirs.save_pretrained(tmp_path)
    ours = from_diffusers(tmp_path)
    B, L = len(lengths), 7
    latent = torch.randn(B, 4, height, width)
    embeds = torch.randn(B, L, 20)
    mask = (torch.arange(L)[None] < torch.tensor(lengths)[:, None]).long()
    timestep = torch.linspace(999, 3.5, B)
    guidance = torch.linspace(0.1, 0.9, B) if overrides.get("guidance_embeds") else None

    wanted = theirs(latent, embeds, timestep, guidance, encoder_attention_mask=mask, return_dict=False)[0]
    got = ours(latent, timestep, ours.prompt_context(embeds, mask), guidance)

    assert got.shape == wanted.shape
    assert relative_error(got, wanted) < 1e-5


def test_same_gradient_as_diffusers(tmp_path):
    theirs = diffusers_model({"qk_norm": "rms_norm_across_heads", "interpolation_scale": 1.0})
    theirs.save_pretrained(tmp_path)
    ours = from_diffusers(tmp_path)
    latent, embeds, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 20), torch.ones(2, 7)
    timestep = torch.tensor([900.0, 40.0])
    theirs(latent, embeds, timestep, encoder_attention_mask=mask, return_dict=False)[0].square().mean().backward()
    ours(latent, timestep, ours.prompt_context(embeds, mask)).square().mean().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, wanted[name].reshape(parameter.shape)) < 1e-4, name


@pytest.mark.parametrize("overrides", [{"qk_norm": "rms_norm_across_heads"}, {"attention_bias": True}], ids=str)
def test_packed_weights_keep_names_velocity_and_gradient(overrides):
    ours = LinearDiT(LinearDiTConfig.from_dict(SMALL | overrides))
    with torch.device("meta"):
        packed = LinearDiT(ours.config)
    with torch.inference_mode():  # as the engine loads
        packed.pack("cpu", torch.float32)
        load_weights(packed, iter(to_diffusers_state_dict(ours).items()), "cpu", torch.float32)
        assert list(packed.state_dict()) == list(ours.state_dict())
        latent, timestep, embeds = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 40.0]), torch.randn(2, 7, 20)
        context = ours.prompt_context(embeds, torch.ones(2, 7))
        wanted = ours(latent, timestep, context)
        assert relative_error(packed(latent, timestep, context), wanted) < 1e-5

    ours.pack("cpu", torch.float32)
    attention = ours.transformer_blocks[0].attn1
    if "attention_bias" in overrides:
        assert attention.packed is None, "layers with a bias stay apart"
        return
    with torch.no_grad():
        assert relative_error(ours(latent, timestep, context), wanted) < 1e-5
        attention.to_k.weight.mul_(2)
        assert torch.equal(attention.packed[48:96], attention.to_k.weight), "a change in place reaches the product"
    attention(torch.randn(1, 5, 48)).sum().backward()
    assert attention.to_v.weight.grad.any()
    assert ours.double().transformer_blocks[0].attn1.packed is None, "weights that move leave the product"


@torch.no_grad()
def test_slots_mix_prompts_and_text_padding_is_exact():
    model = LinearDiT(LinearDiTConfig.from_dict(SMALL)).eval()
    latent, timestep = torch.randn(3, 4, 8, 8), torch.tensor([999.0, 500.0, 10.0])
    lengths = (2, 9, 5)
    texts = [torch.randn(1, length, 20) for length in lengths]
    alone = [
        model(latent[i : i + 1], timestep[i : i + 1], model.prompt_context(text, torch.ones(1, text.shape[1])))
        for i, text in enumerate(texts)
    ]

    padded = []
    for text in texts:
        embeds, mask = torch.full((1, 12, 20), 3.0), torch.zeros(1, 12)
        embeds[:, : text.shape[1]], mask[:, : text.shape[1]] = text, 1
        padded.append(model.prompt_context(embeds, mask))
    stacked = PromptContext.stack(padded)
    slots = stacked.empty_slots(3)
    for slot, context in enumerate(padded):
        slots.write(slot, context)

    for context in (stacked, slots, stacked.select([2, 1, 0]).select(torch.tensor([2, 1, 0]))):
        assert relative_error(model(latent, timestep, context), torch.cat(alone)) < 1e-5
    twice = stacked.select([1, 1])
    assert (len(twice), twice.nbytes) == (2, stacked.nbytes), "rows of one prompt share its keys and values"
    with pytest.raises(ValueError, match=r"one text length, got lengths \[9, 12\]"):
        PromptContext.stack([padded[0], model.prompt_context(texts[1], torch.ones(1, 9))])
    with pytest.raises(ValueError, match="a batch of 3 needs the context of 3 rows, got 1"):
        model(latent, timestep, padded[0])


class Foreign(TorchDispatchMode):
    """Collects what is read that was neither there at the beginning nor made since."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr(): tensor for tensor in known}
        self.found = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.found += [t for t in tensors if t.untyped_storage().data_ptr() not in self.known]
        made = operator(*args, **kwargs or {})
        self.known |= {t.untyped_storage().data_ptr(): t for t in tree_leaves(made) if isinstance(t, torch.Tensor)}
        return made


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_forward_reads_only_weights_and_arguments(name):
    """A recorded forward reads the same memory for ever, so nothing may be read that others could give back."""
    overrides, h, w, lengths = CASES[name]
    model, B = LinearDiT(LinearDiTConfig.from_dict(SMALL | overrides)), len(lengths)
    context = model.prompt_context(torch.randn(B, 7, 20), torch.ones(B, 7))
    latent, time = torch.randn(B, 4, h, w), torch.rand(B)
    guidance = torch.ones(B) if overrides.get("guidance_embeds") else None
    model(latent, time, context, guidance)
    given = [latent, time, context.keys, context.values, context.bias, *([] if guidance is None else [guidance])]
    with Foreign([*model.parameters(), *given]) as mode:
        model(latent, time, context, guidance)
    assert not mode.found


@torch.no_grad()
def test_bfloat16_stays_near_float32(tmp_path):
    theirs = diffusers_model({"qk_norm": "rms_norm_across_heads"})
    theirs.save_pretrained(tmp_path)
    wide, narrow = from_diffusers(tmp_path), from_diffusers(tmp_path, dtype=torch.bfloat16)
    latent, embeds, mask, t = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 20), torch.ones(2, 7), torch.tensor([9.0, 900])
    got = narrow(latent, t, narrow.prompt_context(embeds, mask))
    assert got.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: about 0.4 % a rounding, a few dozen roundings deep
    assert relative_error(got.float(), wide(latent, t, wide.prompt_context(embeds, mask))) < 0.05


def test_saved_weights_are_diffusers_weights(tmp_path):
    model = LinearDiT(LinearDiTConfig.from_dict(SMALL | {"patch_size": 2, "guidance_embeds": True}))
    model.init_weights()
    save_diffusers(model, tmp_path)
    theirs = SanaTransformer2DModel.from_pretrained(tmp_path)
    ours = to_diffusers_state_dict(model)
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())
    assert not theirs.proj_out.weight.any()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_layer", 4, "unknown field 'num_layer' = 4"),
        ("qk_norm", "layer_norm", "qk_norm = 'layer_norm' is not supported, only None or 'rms_norm_across_heads'"),
        ("cross_attention_dim", 64, "cross_attention_dim = 64 is not supported, only 48"),
        ("out_channels", 8, "out_channels = 8 is not supported, only None or 4"),
        ("num_cross_attention_heads", None, "num_cross_attention_heads = None is not supported, only a whole number"),
        ("_class_name", "FluxTransformer2DModel", "_class_name is 'FluxTransformer2DModel'"),
    ],
)
def test_config_that_does_not_fit_is_named(field, value, message):
    with pytest.raises(CheckpointError, match=message):
        LinearDiTConfig.from_dict(SMALL | {field: value})


def test_weight_that_does_not_fit_is_named_with_both_shapes(tmp_path):
    model = diffusers_model({})
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    path.write_text(json.dumps(config | {"num_layers": 4}))
    with pytest.raises(
        CheckpointError, match=r"no weight 'transformer_blocks.3.attn1.to_k.weight' of shape \(48, 48\) and"
    ):
        from_diffusers(tmp_path)
    path.write_text(json.dumps(config | {"num_layers": 2}))
    with pytest.raises(
        CheckpointError, match=r"no place for weight 'transformer_blocks.2.attn1.to_k.weight' \(48, 48\)"
    ):
        from_diffusers(tmp_path)
    path.write_text(json.dumps(config | {"caption_channels": 24}))
    with pytest.raises(
        CheckpointError, match=r"linear_1.weight' has shape \(48, 20\), config.json asks for \(48, 24\)"
    ):
        from_diffusers(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"config.json does not exist"):
        from_diffusers(tmp_path)


@torch.no_grad()
def test_sharded_weights_load(tmp_path):
    theirs = diffusers_model({})
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = to_diffusers_state_dict(from_diffusers(tmp_path))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())
