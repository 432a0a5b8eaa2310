"""Text encoding against SanaPipeline.encode_prompt; limits and unknown words."""

import pytest
import torch
from diffusers import SanaPipeline
from torch.utils._python_dispatch import TorchDispatchMode

from bestofn.models.errors import PromptTooLong
from bestofn.models.generator import Generator
from bestofn.models.instruction import COMPLEX_HUMAN_INSTRUCTION
from bestofn.models.text import EmbeddingCache, TextEmbedding, encode


@pytest.fixture(scope="module")
def pair(tiny_checkpoints):
    folder = tiny_checkpoints["tiny"]
    return Generator.load(str(folder)), SanaPipeline.from_pretrained(folder, dtype=torch.float32)


def test_instruction_is_the_pipelines():
    import inspect

    default = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert list(COMPLEX_HUMAN_INSTRUCTION) == default


@pytest.mark.parametrize("prompt", ["a cat", "  A Photo of TWO dogs\n", "", "x" * 40])
def test_same_embedding_as_the_pipeline(pair, prompt):
    generator, pipeline = pair
    length = generator.calls.max_sequence_length
    wanted = pipeline.encode_prompt(
        prompt,
        negative_prompt=prompt,
        max_sequence_length=length,
        complex_human_instruction=list(COMPLEX_HUMAN_INSTRUCTION),
    )
    for instructed, states, mask in ((True, *wanted[:2]), (False, *wanted[2:])):
        got = encode(generator.text_encoder, generator.tokenizer, prompt, instructed)
        assert got.states.shape == (1, length, 48)
        assert torch.equal(got.mask, mask)
        assert torch.equal(got.states, states)


class Indices(TorchDispatchMode):
    """Counts reads by a list of indices, which is copied to the device while the host waits."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator is torch.ops.aten.index.Tensor
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("instructed", [True, False])
def test_encoding_takes_its_tokens_without_an_index(pair, instructed):
    def encoder(ids, attention_mask):
        return [ids[..., None].expand(-1, -1, 4).float()]

    encoder.parameters = lambda: iter([torch.zeros(1)])
    with Indices() as reads:
        encode(encoder, pair[0].tokenizer, "a cat", instructed)
    assert reads.count == 0


def test_a_prompt_over_the_limit_is_refused_not_cut(pair):
    tokenizer = pair[0].tokenizer
    longest = " ".join(["zq"] * 100)
    while tokenizer.count(longest) > tokenizer.limit:
        longest = longest[:-1]
    tokenizer.check(longest)
    ids, mask = tokenizer(longest)
    assert mask.all(), "the longest prompt fills the window"
    assert ids.shape[1] == tokenizer.window(instructed=True)
    with pytest.raises(PromptTooLong, match=r"has 48 tokens, the text encoder takes at most 47"):
        tokenizer.check(longest + "q")
    tokenizer.check(longest + "q", instructed=False)
    with pytest.raises(PromptTooLong, match="at most 48"):
        tokenizer.check(longest + "zq", instructed=False)


def test_text_encoder_runs_once_a_prompt_and_for_the_empty_negative_with_the_first():
    asked = []

    def embed(prompt, negative):
        asked.append((prompt, negative))
        return TextEmbedding(torch.zeros(1), torch.zeros(1))

    cache = EmbeddingCache(embed, with_empty=True, kept=2)
    for prompt, negative in [("a", False), ("", True), ("b", False), ("a", False), ("", True), ("c", False)]:
        cache.get(prompt, negative)
    assert asked == [("a", False), ("", True), ("b", False), ("c", False)]
    cache.get("b", False)
    assert asked[4:] == [("b", False)], "b was the oldest of three"
