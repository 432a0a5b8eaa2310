"""Cross-attention against its reference: any lengths, any masks, prompts that candidates share."""

import pytest
import torch

from bestofn.kernels import cross_attention
from bestofn.kernels.fused import cross_attention as fused
from tests.kernels.fused.common import DEVICE, EPS, check, check_alone, dtypes, noise

# id: B, N, H, K, padded length, true lengths of the prompts, prompt of each row
PROMPTS = {
    "one_token": (1, 1, 1, 8, 1, [1], None),
    "ragged": (3, 17, 3, 16, 20, [20, 3, 11], None),
    "several_blocks": (1, 70, 2, 24, 80, [65], None),
    "sana_head": (1, 3, 1, 112, 40, [33], None),
    "many_candidates_of_two_prompts": (5, 4, 2, 16, 12, [5, 12], [0, 1, 0, 0, 1]),
}


def bias_of(lengths, L, dtype):
    seen = torch.arange(L)[None] < torch.tensor(lengths)[:, None]
    return torch.where(seen, 0.0, -10_000.0)[:, None, None, :].to(DEVICE, dtype)


@dtypes
@pytest.mark.parametrize("normed", [True, False], ids=["normed", "plain"])
@pytest.mark.parametrize("name", PROMPTS)
def test_cross_attention(name, normed, dtype):
    B, N, H, K, L, lengths, prompts = PROMPTS[name]
    query, keys, values = noise(B, N, H * K, dtype=dtype), *(noise(len(lengths), H, L, K, dtype=dtype) for _ in "kv")
    weight = noise(H * K, dtype=dtype) if normed else None
    index = None if prompts is None else torch.tensor(prompts, device=DEVICE)
    args = [query, keys, values, bias_of(lengths, L, dtype), weight, EPS, index]
    check(fused.cross_attention, cross_attention.cross_attention, args)


@dtypes
def test_cross_attention_reads_nothing_after_the_text(dtype):
    query, keys, values = noise(2, 5, 32, dtype=dtype), *(noise(2, 2, 9, 16, dtype=dtype) for _ in "kv")
    bias = bias_of([4, 9], 9, dtype)
    wanted = fused.cross_attention(query, keys, values, bias, None, EPS, None)
    keys[0, :, 4:] = torch.nan
    values[0, :, 4:] = torch.nan
    assert torch.equal(fused.cross_attention(query, keys, values, bias, None, EPS, None), wanted)


@dtypes
def test_cross_attention_keeps_to_any_mask(dtype):
    query, keys, values = noise(1, 5, 32, dtype=dtype), *(noise(1, 2, 9, 16, dtype=dtype) for _ in "kv")
    bias = bias_of([7], 9, dtype)
    bias[..., 2:5] = -10_000.0
    args = [query, keys, values, bias, None, EPS, None]
    check(fused.cross_attention, cross_attention.cross_attention, args)


def test_cross_attention_to_nothing_is_to_all_alike():
    query, keys, values = noise(1, 5, 32), *(noise(1, 2, 9, 16) for _ in "kv")
    args = [query, keys, values, bias_of([0], 9, torch.float32), None, EPS, None]
    got, wanted = fused.cross_attention(*args), cross_attention.cross_attention(*args)
    assert torch.allclose(got, wanted, atol=5e-3)  # beside -10,000 a score keeps three decimal places


def test_a_row_has_the_same_bits_in_every_batch():
    query, keys, values = noise(2, 20, 32), *(noise(2, 2, 40, 16) for _ in "kv")
    args = [query, keys, values, bias_of([40, 13], 40, torch.float32), noise(32), EPS, None]
    check_alone(fused.cross_attention, args)
