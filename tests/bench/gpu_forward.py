"""One forward of the transformer by rows of the batch: ours as the engine calls it, plainly and as a CUDA graph,
without each of its joined operators, and diffusers'; of 1.6B also with FP8 products; then decoder and judge by
images of a batch."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import SanaTransformer2DModel
from figures import Measured, Table
from gpu_ceilings import peak_rate
from gpu_place import Place, config, draw, emptied, engine, nvila, transformer

from bestofn.kernels.modulate import gated_residual, modulated_norm, residual_norm
from bestofn.models.errors import UnsupportedDevice
from bestofn.models.flops import TERA, forward_flops
from bestofn.models.fused_decoder import OWN, FusedUpsampling
from bestofn.models.linear_dit import blocks
from bestofn.models.linear_dit.fp8 import check_supported, with_fp8_products
from bestofn.service.engine.cuda_graph import Recorded

ROWS = {"1.6B": (2, 4, 8, 16, 32, 64), "4.8B": (2, 16, 64)}
TEXT = 300


def measure(place: Place) -> Iterator[Measured]:
    """The ceiling is a large matrix product of this run. Operations of the decoder are those of diffusers."""
    forwards: list[tuple[str | float, ...]] = []
    parts: list[tuple[str | float, ...]] = []
    ceiling = peak_rate(place)
    measured = Measured(
        [
            Table(("model", "rows", "way", "ms", "ms a row", "TFLOP/s", "% of the ceiling"), forwards),
            Table(("part", "images", "ms", "ms an image", "TFLOP/s", "% of the ceiling"), parts),
        ],
        notes=[f"The ceiling: {ceiling:.4g} TFLOP/s."],
    )
    for size, sizes in ROWS.items():
        for rows in place.pick(sizes, (2,)):
            for way, seconds, flops in _forward(place, size, rows):
                rate = flops / seconds / TERA
                forwards.append((size, rows, way, 1e3 * seconds, 1e3 * seconds / rows, rate, 100 * rate / ceiling))
            yield measured
        place.free()
    for part, images, seconds, flops in _parts(place):
        rate = flops / seconds / TERA
        parts.append((part, images, 1e3 * seconds, 1e3 * seconds / images, rate, 100 * rate / ceiling))
        yield measured


def _forward(place: Place, size: str, rows: int) -> Iterator[tuple[str, float, int]]:
    shape = config(place, size)
    side, L = shape.sample_size, place.pick(TEXT, 9)
    flops = rows * forward_flops(shape, side, side, L)
    runs = place.pick(5, 2)
    model = _models.get((place, size, "ours")) or _models.setdefault((place, size, "ours"), transformer(place, size))
    latent = place.normal(rows, shape.in_channels, side, side, dtype=torch.float32)
    time = torch.full((rows,), 500.0, device=place.device)
    text, seen = place.normal(1, L, shape.caption_channels), torch.ones(1, L, device=place.device)
    with torch.inference_mode():
        context = model.prompt_context(text, seen).select([0] * rows)
        out = torch.empty(latent.shape, dtype=place.dtype, device=place.device)
        plain: Callable[[], object] = lambda: out.copy_(model(latent, time, context))  # noqa: E731
        yield "plain", place.seconds(plain, runs), flops
        recorded = Recorded(plain, place.device)
        recorded()
        yield "recorded", place.seconds(recorded, runs), flops
        for way, parted in APART.items():
            with parted(model):
                recorded = Recorded(plain, place.device)
                recorded()
                yield f"recorded, {way}", place.seconds(recorded, runs), flops
        if size == "1.6B" and supported(place.device):
            twin = with_fp8_products(model)
            recorded = Recorded(lambda: out.copy_(twin(latent, time, context)), place.device)
            recorded()
            yield "recorded, 8 bits", place.seconds(recorded, runs), flops
        theirs = _models.get((place, size, "diffusers"))
        if theirs is None:
            with torch.device("meta"):
                made = SanaTransformer2DModel.from_config(shape.to_dict())
            theirs = _models[place, size, "diffusers"] = draw(emptied(made, place))
        hidden, mask = text.expand(rows, -1, -1), seen.expand(rows, -1)
        same = latent.to(place.dtype)
        call = lambda: theirs(same, encoder_hidden_states=hidden, encoder_attention_mask=mask, timestep=time)  # noqa: E731
        yield "diffusers", place.seconds(call, runs), flops


def supported(device: torch.device) -> bool:
    """Whether it has FP8 products."""
    try:
        check_supported(device)
    except UnsupportedDevice:
        return False
    return True


@contextmanager
def three_products(model: torch.nn.Module) -> Iterator[None]:
    """Lets queries, keys and values be products of their own."""
    packed = {module: module.packed for module in model.modules() if isinstance(module, blocks.LinearAttention)}
    for module in packed:
        module.packed = None
    try:
        yield
    finally:
        for module, weights in packed.items():
            module.packed = weights


@contextmanager
def two_passes(model: torch.nn.Module) -> Iterator[None]:
    """Lets a block's last residual and the next norm be passes of their own."""

    def apart(x: torch.Tensor, gate: torch.Tensor | None, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if gate is None:
            return joined(x, gate, *rest)  # type: ignore[no-any-return]
        y = gated_residual(x, gate, rest[0])
        return y, modulated_norm(y, *rest[1:])

    joined: Any = residual_norm
    with patch.object(blocks, "residual_norm", apart):
        yield


APART = {"q, k, v apart": three_products, "last residual apart": two_passes}

_models: dict[tuple[Place, str, str], Any] = {}


@contextmanager
def one_by_one(vae: torch.nn.Module, kinds: Collection[type] = frozenset(OWN.values())) -> Iterator[None]:
    """Lets a decoder, or its modules of some kinds, compute as diffusers does."""
    ours: dict[Any, Any] = {module: type(module) for module in vae.modules() if type(module) in kinds}
    for module, own in ours.items():
        module.__class__ = own.__base__
    try:
        yield
    finally:
        for module, own in ours.items():
            module.__class__ = own


def _parts(place: Place) -> Iterator[tuple[str, int, float, int]]:
    _models.clear()
    place.free()
    made = engine(place, "1.6B")
    generator, judge = made.generator, nvila(made)
    width, height = made.model_info.width, made.model_info.height
    for images in place.pick((1, 8), (2,)):
        latents = place.normal(images, *generator.latent_shape(width, height), dtype=torch.float32)
        flops = images * generator.flops(width, height).decode
        yield "decoder", images, place.seconds(partial(generator.decode, latents), 3), flops
        for way, kinds in (("upsampling apart", {FusedUpsampling}), ("as diffusers", OWN.values())):
            with one_by_one(generator.decoder.vae, kinds):
                yield f"decoder, {way}", images, place.seconds(partial(generator.decode, latents), 3), flops
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for images in place.pick((1, 16), (2,)):
        flops = images * judge.flops(width, height, "a star", one_tile=True)
        prompts = ["a star"] * images
        for where, asked in (
            ("cut on the host", [image] * images),
            ("cut on the device", torch.from_numpy(image).to(place.device).expand(images, -1, -1, -1)),
        ):
            seconds = place.seconds(partial(judge.ask, asked, prompts, one_tile=True), 3)
            yield f"judge, one tile, {where}", images, seconds, flops
