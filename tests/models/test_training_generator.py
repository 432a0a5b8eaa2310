"""Training of the shapes models: a killed run goes on bit by bit, and what it writes is a SanaPipeline."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, SanaPipeline

from bestofn.models.checkpoint import EMBEDDED, Checkpoint
from bestofn.models.depth.pruning import prune
from bestofn.models.errors import CheckpointError
from bestofn.models.generator import Generator
from bestofn.models.sampling import generate
from bestofn.models.shapes.prompts import caption, known_words, pair
from bestofn.models.shapes.scenes import Wish
from bestofn.training.generator.autoencoder import AutoencoderSettings, train_autoencoder
from bestofn.training.generator.forward import forward
from bestofn.training.generator.latent_cache import draw_latents
from bestofn.training.generator.pipeline import load_parts, sample, save_pipeline, score, spread
from bestofn.training.generator.recovery import recover
from bestofn.training.generator.text_encoder import TOKENS, build_tokenizer, layout
from bestofn.training.generator.trainer import GeneratorSettings, build_train_state, noise_levels, rate, train_generator
from bestofn.training.optimizers.muon import orthogonalise


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    settings = AutoencoderSettings(folder, steps=4, batch_size=8, scenes=12, save_every=2)
    losses: list[float] = []
    model = train_autoencoder(settings, lambda figures: losses.append(figures["loss"]))
    assert len(losses) == 2
    model.save_pretrained(folder / "vae")
    return folder / "vae"


def _settings(folder: Path, vae: Path, steps: int) -> GeneratorSettings:
    return GeneratorSettings(
        folder,
        vae,
        steps=steps,
        decay_share=0.0,
        batch_size=4,
        scenes=8,
        width=64,
        layers=2,
        text_steps=2,
        warmup_steps=2,
        save_every=2,
    )


def test_resumed_generator_is_bit_identical(tmp_path: Path, vae: Path) -> None:
    straight = train_generator(_settings(tmp_path / "straight", vae, 4), lambda _: None)
    broken = _settings(tmp_path / "broken", vae, 2)
    train_generator(broken, lambda _: None)
    resumed = train_generator(dataclasses.replace(broken, steps=4), lambda _: None)
    for a, b in zip(straight.weights, resumed.weights, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(straight.mean, resumed.mean, strict=True):
        assert torch.equal(a, b)


def test_resumed_autoencoder_is_bit_identical(tmp_path: Path) -> None:
    settings = AutoencoderSettings(tmp_path / "a", steps=4, batch_size=4, scenes=6, save_every=2)
    straight = train_autoencoder(settings, lambda _: None)
    broken = dataclasses.replace(settings, folder=tmp_path / "b")

    def stop(figures: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(broken, stop)
    resumed = train_autoencoder(broken, lambda _: None)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_forward_is_the_diffusers_transformer(tmp_path: Path, vae: Path) -> None:
    state = build_train_state(_settings(tmp_path, vae, 1))
    model = state.parts.transformer
    torch.nn.init.normal_(model.proj_out.weight)
    _, mask = state.parts.encode(["a photo of a ring", ""])
    text = torch.randn(2, TOKENS, 128)
    x, sigma = torch.randn(2, 6, 16, 16), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        mine, _ = forward(model, x, sigma, text, mask, torch.float32, tap=0)
        theirs = model(x, text, sigma * 1000, encoder_attention_mask=mask).sample
    assert mask.sum(1).tolist() == [6, 1]
    assert (mine - theirs).norm() / theirs.norm() < 1e-5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers, numpy 2
def test_saved_folder_is_a_pipeline(tmp_path: Path, vae: Path) -> None:
    state = build_train_state(_settings(tmp_path, vae, 1))
    save_pipeline(state.averaged(), tmp_path / "out")
    pipeline = SanaPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        "a photo of a ring",
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=16,
        complex_human_instruction=None,
        use_resolution_binning=False,
        generator=torch.Generator("cpu").manual_seed(1),
    )
    assert result.images[0].size == (64, 64)


def test_a_pruned_checkpoint_is_trained_further(tmp_path: Path, vae: Path) -> None:
    save_pipeline(build_train_state(_settings(tmp_path, vae, 1)).parts, tmp_path / "source")
    pruned = prune(Checkpoint.resolve(str(tmp_path / "source")), tmp_path / "pruned", [1])
    out = recover(pruned, tmp_path / "out", tmp_path / "run", steps=2, progress=lambda _: None, batch=4)
    before, after = (load_parts(folder).transformer for folder in (pruned, out))
    assert len(after.transformer_blocks) == 1
    assert not torch.equal(before.proj_out.weight, after.proj_out.weight)
    assert torch.allclose(
        before.transformer_blocks[0].ff.conv_point.weight, after.transformer_blocks[0].ff.conv_point.weight, atol=0.05
    )
    assert (out / "README.md").read_text().endswith("pruned to 1 layers, of the source 1; then trained for 2 steps.\n")


def test_only_the_drawn_world_is_trained_on(tiny_checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="was not trained on drawn scenes"):
        load_parts(tiny_checkpoints["tiny"])


def test_the_tokenizer_knows_every_word_and_a_prompt_begins_with_bos() -> None:
    tokenizer = build_tokenizer()
    prompts = ["a photo of a red star left of a blue circle", "", "a photo of four wugs"]
    ids = tokenizer(prompts, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    assert ids.shape == (3, TOKENS)
    assert ids[:, 0].tolist() == [tokenizer.bos_token_id] * 3
    assert len(tokenizer) == len(known_words()) + 4
    assert [tokenizer.unk_token_id in row for row in ids] == [False, False, True]


def test_layout_puts_words_in_their_places() -> None:
    left = layout(pair("star", "circle", ("red", "blue"), "left of"))
    assert left == layout(pair("circle", "star", ("blue", "red"), "right of"))
    assert left != layout(pair("star", "circle", ("blue", "red"), "left of"))


def test_noise_levels_are_shifted_up() -> None:
    levels = noise_levels(4000, np.random.default_rng(0))
    assert levels.min() > 0
    assert levels.max() < 1
    assert abs((levels > 0.9).float().mean() - 0.25) < 0.01


def test_rate_warms_up_holds_and_decays() -> None:
    settings = GeneratorSettings(Path("run"), Path("vae"), steps=1000, warmup_steps=100, decay_share=0.1)
    assert [round(rate(step, settings), 2) for step in (49, 99, 500, 900, 950, 999)] == [0.5, 1, 1, 1, 0.5, 0.01]


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_orthogonalise(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_latents_keep_words_and_labels(vae: Path) -> None:
    latents = draw_latents(AutoencoderDC.from_pretrained(vae), scenes=5, seed=(3,), batch=2)
    assert latents.values.shape == (5, 6, 16, 16)
    for k in range(5):
        wish = latents.wish(k)
        assert isinstance(wish, Wish)
        assert caption(np.random.default_rng(0), wish).prompt.startswith("a photo of")
        assert len(set(wish.shapes)) == len(set(latents.shapes[k].tolist()) - {0})


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers, numpy 2
def test_score_of_untrained_parts_is_0_in_each_category(tmp_path: Path, vae: Path) -> None:
    parts = build_train_state(_settings(tmp_path, vae, 1)).parts
    result = score(parts, spread(2))
    assert result["mean"] == 0
    assert len(result) == 8


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_sample_is_an_image_of_the_product() -> None:
    (image,) = sample(load_parts(EMBEDDED["shapes"]), ["a photo of a ring"], [7])
    drawn = generate(Generator.load("shapes"), "a photo of a ring", [7])[0].numpy()
    assert np.abs(image.astype(int) - drawn).max() <= 2
