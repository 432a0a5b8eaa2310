"""Decoding to pixels as diffusers' image processor makes them, in slices."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.image_processor import PixArtImageProcessor
from diffusers.models.autoencoders.autoencoder_dc import DCUpBlock2d, ResBlock

from bestofn.models.autoencoder import TILE, TILE_STRIDE, Decoder, to_pixels
from bestofn.models.fused_decoder import OWN, FusedUpsampling, fuse
from bestofn.models.random_init.checkpoint import DC_AE

WIDTHS = ("encoder_block_out_channels", "decoder_block_out_channels")


def test_pixels_are_the_image_processors():
    image = torch.randn(3, 3, 8, 6)
    image[0, 0, 0, :4] = torch.tensor([-1.0, 1.0, 0.5 / 127.5 - 1, 2.5 / 127.5 - 1])  # halves round to even
    wanted = PixArtImageProcessor(vae_scale_factor=4).postprocess(image, output_type="pil")
    assert np.array_equal(to_pixels(image).numpy(), np.stack([np.asarray(one_image) for one_image in wanted]))


@torch.no_grad()
@pytest.mark.parametrize("sides", [(4, 6), (1, 1)], ids=["linear_attention", "quadratic_attention"])
def test_a_fused_decoder_computes_what_diffusers_does(sides):
    vae: Any = AutoencoderDC.from_config({**DC_AE, **{key: [16, 16, 16, 32, 32, 32] for key in WIDTHS}}).eval()
    for parameter in vae.decoder.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1, 0.3)  # weights and biases of norms, which start as ones and zeros
    names, latents = list(vae.state_dict()), torch.randn(2, 32, *sides)
    wanted = vae.decode(latents).sample
    fuse(vae)
    got = vae.decode(latents.to(memory_format=torch.channels_last)).sample
    assert list(vae.state_dict()) == names
    assert {type(module) for module in vae.decoder.modules()} >= set(OWN.values())
    assert not {type(module) for module in vae.decoder.modules()} & OWN.keys()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_decoder_decodes_what_the_whole_autoencoder_decodes(tiny_checkpoints):
    folder = tiny_checkpoints["few_heads"] / "vae"
    decoder = Decoder.load(folder, torch.device("cpu"), torch.float32)
    vae = AutoencoderDC.from_pretrained(folder)
    latents = torch.randn(5, 8, 6, 4)
    wanted = to_pixels(vae.decode(latents / 0.9).sample).int()
    got = decoder(latents)
    assert got.shape == (5, 24, 16, 3)
    assert (got.int() - wanted).abs().max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("width", [8, 4, 2])
@pytest.mark.parametrize("sides", [(1, 1), (3, 5)], ids=str)
def test_upsampling_is_four_convolutions_of_two_by_two(width, sides):
    block, image = DCUpBlock2d(8, width, interpolate=True), torch.randn(2, 8, *sides)
    wanted = block(image)
    block.__class__ = FusedUpsampling
    block.sum_weights()
    torch.testing.assert_close(block(image.to(memory_format=torch.channels_last)), wanted, rtol=1e-5, atol=1e-5)
    exact = block.double()(image.double())
    block.bfloat16().sum_weights()
    rounded = block(image.bfloat16()).double()
    assert (rounded - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"decoder_norm_types": "batch_norm"}, ResBlock), ({"upsample_block_type": "pixel_shuffle"}, DCUpBlock2d)],
    ids=["batch_norm", "pixel_shuffle"],
)
def test_a_decoder_of_other_blocks_keeps_them(changes, kind):
    vae: Any = AutoencoderDC.from_config({**DC_AE, **{key: [16, 16, 16, 32, 32, 32] for key in WIDTHS}, **changes})
    fuse(vae)
    kinds = {type(module) for module in vae.decoder.up_blocks[0].modules()}
    assert kind in kinds
    assert OWN[kind] not in kinds


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tiles_are_blended_as_diffusers_blends_them(tiny_checkpoints, dtype):
    folder, latents = tiny_checkpoints["tiny"] / "vae", torch.randn(1, 8, 300, 290)
    vae = AutoencoderDC.from_pretrained(folder, dtype=dtype)
    vae.enable_tiling(TILE, TILE, TILE_STRIDE, TILE_STRIDE)
    wanted = to_pixels(vae.decode(latents.to(dtype) / vae.config.scaling_factor).sample)
    assert torch.equal(Decoder.load(folder, torch.device("cpu"), dtype)(latents, tiled=True), wanted)


def test_tiles_agree_with_the_whole_image_away_from_seams(tiny_checkpoints):
    decoder = Decoder.load(tiny_checkpoints["tiny"] / "vae", torch.device("cpu"), torch.float32)
    latents = torch.randn(1, 8, 12, 300)  # 48 x 1,200 pixels
    tiled, whole = decoder(latents, tiled=True), decoder(latents, tiled=False)
    assert tiled.shape == whole.shape == (1, 48, 1200, 3)
    assert torch.equal(decoder(latents), whole), "tiling is off again"


@pytest.mark.parametrize(("cells", "tiled"), [(512, False), (513, True)])
def test_only_sides_above_2048_pixels_are_decoded_in_tiles(cells, tiled, tiny_checkpoints):
    decoder = Decoder.load(tiny_checkpoints["tiny"] / "vae", torch.device("cpu"), torch.float32)
    for shape in ((4, cells), (cells, 4)):
        latents = torch.randn(1, 8, *shape)
        assert torch.equal(decoder(latents), decoder(latents, tiled=tiled))
        assert not torch.equal(decoder(latents), decoder(latents, tiled=not tiled))
