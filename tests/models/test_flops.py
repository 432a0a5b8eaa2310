"""Operation counts against torch's counter and the published sizes."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config, Gemma2Model

from bestofn.models.flops import context_flops, decode_flops, forward_flops, text_flops
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.random_init.checkpoint import DC_AE, SANA_1_5, TINY_TRANSFORMER


@pytest.mark.parametrize(
    ("layers", "side", "gigaflops"), [(20, 32, 2966.7), (20, 16, 836.6), (60, 32, 8887.0), (60, 16, 2497.3)]
)
def test_published_sizes(layers, side, gigaflops):
    config = LinearDiTConfig.from_dict(SANA_1_5 | {"num_layers": layers})
    total = forward_flops(config, side, side, 300) + context_flops(config, 300)
    assert total / 1e9 == pytest.approx(gigaflops, rel=1e-3)


def test_autoencoder_of_published_size():
    assert decode_flops(DC_AE, 32, 32) / 1e9 == pytest.approx(8369, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"patch_size": 2, "guidance_embeds": True}], ids=["plain", "patch_2"])
def test_transformer_as_torch_counts_it(changes):
    model = LinearDiT(LinearDiTConfig.from_dict(TINY_TRANSFORMER | changes))
    guidance = torch.ones(1) if changes else None
    # torch's attention kernels on a CPU are not all counted, the plain mathematics is
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            context = model.prompt_context(torch.randn(1, 9, 48), torch.ones(1, 9))
        assert context_flops(model.config, 9) == counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 8, 6, 4), torch.ones(1), context, guidance)
    assert forward_flops(model.config, 6, 4, 9) == counter.get_total_flops()


def test_text_encoder_as_torch_counts_it():
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64}
    model = Gemma2Model(Gemma2Config(**sizes, **heads))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.ones(1, 11, dtype=torch.int64))
    config = json.loads(model.config.to_json_string(use_diff=False))
    assert text_flops(config, 11) == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert text_flops(Gemma2Config().to_dict(), 500) / 1e9 == pytest.approx(2078, rel=0.01)
