"""The engine against what a user would pick instead: diffusers' SanaPipeline with num_images_per_prompt = N, eager and
with the transformer's blocks under torch.compile. All decode 8 images at a time and ask the same judge about one
tile, 16 at a time."""

import time
from collections.abc import Iterator
from functools import partial

import torch
from diffusers import SanaPipeline
from figures import Figure, Measured, Table, at_least
from gpu_place import PROMPT, Place, draw, engine, generator_folder, job, nvila, run, stages

from bestofn.models.autoencoder import to_pixels

DECODED, JUDGED = 8, 16
WANTED = {"diffusers": 1.5, "diffusers, compiled": 1.15}


def measure(place: Place) -> Iterator[Measured]:
    """Ours, eager, ours, compiled: a ratio is of neighbours."""
    rows: list[tuple[str | float, ...]] = []
    figures: list[Figure] = []
    header = ("way", "N", "s", "candidates/s", "of it judge s", "ours is x of it")
    notes = ["The judge's seconds of ours overlap with other work. Compiling is not counted."]
    measured = Measured([Table(header, rows)], figures, notes)
    N, steps = place.pick(32, 3), place.pick(20, 2)
    made = engine(place, "1.6B")
    judge, info = nvila(made), made.model_info
    pipeline = SanaPipeline.from_pretrained(generator_folder(place, "1.6B"), torch_dtype=place.dtype).to(place.device)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        draw(part)

    def ours(seed: int) -> tuple[float, float]:
        spec = job(made, N, seed=seed, prompt=f"{seed} {PROMPT}", num_inference_steps=steps)
        seconds, drawn = place.timed(partial(run, made, spec))
        return seconds, stages(drawn["job"])["judge"]

    @torch.inference_mode()
    def theirs(seed: int) -> tuple[float, float]:
        place.wait()
        begun = time.perf_counter()
        latents = pipeline(
            f"{seed} {PROMPT}",
            num_images_per_prompt=N,
            num_inference_steps=steps,
            guidance_scale=info.guidance_scale,
            width=info.width,
            height=info.height,
            use_resolution_binning=False,
            complex_human_instruction=list(made.generator.calls.complex_human_instruction) or None,
            max_sequence_length=made.generator.calls.max_sequence_length,
            generator=[torch.Generator("cpu").manual_seed(seed + i) for i in range(N)],
            output_type="latent",
        ).images
        scaled = latents.to(place.dtype) / pipeline.vae.config.scaling_factor
        images = [p for part in scaled.split(DECODED) for p in to_pixels(pipeline.vae.decode(part).sample).cpu()]
        drawn = time.perf_counter()
        for start in range(0, N, JUDGED):
            some = [image.numpy() for image in images[start : start + JUDGED]]
            judge.judge(some, [PROMPT] * len(some), one_tile=True)
        return time.perf_counter() - begun, time.perf_counter() - drawn

    def compiled() -> float:
        begun = time.perf_counter()
        for block in pipeline.transformer.transformer_blocks:  # alike, so that one is compiled for all
            block.compile(**place.pick({}, {"backend": "eager"}))
        theirs(1)
        return time.perf_counter() - begun

    ours(1)
    theirs(1)
    for number, way in enumerate(WANTED, 1):
        if number > 1:
            notes.append(f"Compiling and the first run took {compiled():.0f} s.")
        mine, other = ours(100 * number), theirs(100 * number)
        ratio = other[0] / mine[0]
        rows.append((f"ours, measured with {way}", N, mine[0], N / mine[0], mine[1], 1.0))
        rows.append((way, N, other[0], N / other[0], other[1], ratio))
        if not place.tiny:
            figures.append(at_least(f"ours of {way}", ratio, WANTED[way], "x"))
        yield measured
