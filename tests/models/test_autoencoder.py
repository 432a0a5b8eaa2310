"""Decoding to pixels as diffusers' image processor makes them, in slices."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.image_processor import PixArtImageProcessor

from bestofn.models.autoencoder import Decoder, to_pixels


def test_pixels_are_the_image_processors():
    image = torch.randn(3, 3, 8, 6)
    image[0, 0, 0, :4] = torch.tensor([-1.0, 1.0, 0.5 / 127.5 - 1, 2.5 / 127.5 - 1])  # halves round to even
    wanted = PixArtImageProcessor(vae_scale_factor=4).postprocess(image, output_type="pil")
    assert np.array_equal(to_pixels(image).numpy(), np.stack([np.asarray(one_image) for one_image in wanted]))


@torch.no_grad()
def test_slices_decode_what_the_whole_autoencoder_decodes(tiny_checkpoints):
    folder = tiny_checkpoints["few_heads"] / "vae"
    decoder = Decoder.load(folder, torch.device("cpu"), torch.float32)
    vae = AutoencoderDC.from_pretrained(folder)
    latents = torch.randn(5, 8, 6, 4)
    wanted = to_pixels(vae.decode(latents / 0.9).sample).int()
    for micro_batch in (None, 1, 2):
        got = decoder(latents, micro_batch)
        assert got.shape == (5, 24, 16, 3)
        assert (got.int() - wanted).abs().max() <= 1


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
