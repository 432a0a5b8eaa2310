"""bestofn train: the shapes generator and judge from nothing, and any SANA further on images with captions."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bestofn.cli.console import need_packages, say
from bestofn.cli.progress_bar import StepBar, figures_text
from bestofn.service.core.errors import SetupError
from bestofn.training.judge.settings import JudgeSettings
from bestofn.training.optimizers import Name

program = typer.Typer(
    no_args_is_help=True, help="Train the shapes models, or fine-tune a checkpoint. A run that was cut off goes on."
)

Run = Annotated[Path, typer.Option(help="Folder of the run's checkpoints and log; a run that is in it goes on.")]
Out = Annotated[Path, typer.Option(help="Folder that the trained model is written to.")]
Seed = Annotated[int, typer.Option(min=0, help="Of first weights, data and noise.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Forwards of an update, whose gradients are added up.")]
_count = partial(typer.Option, min=1)
Bf16 = Annotated[
    bool | None, typer.Option("--bf16/--no-bf16", help="Matrix products in bfloat16; by default where the GPU has it.")
]


@program.command(epilog="Example: `bestofn train generator --run runs/generator --out my-shapes --steps 3000`")
def generator(
    run: Run,
    out: Out,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the transformer.")] = 3000,
    vae_steps: Annotated[int, typer.Option(min=1, help="Updates of the autoencoder, which is trained first.")] = 1700,
    seed: Seed = 0,
    threads: Threads = 1,
    scored: Annotated[int, typer.Option(min=0, help="Held-out prompts a category for the score; 0 for none.")] = 10,
    start: Annotated[
        str | None, typer.Option(help="Go on from a trained checkpoint, such as a grown one; shapes or a folder.")
    ] = None,
    optimizer: Name = "muon",
    accumulate: Accumulate = 1,
    ema: Annotated[
        float, typer.Option(min=0, max=0.99999, help="Decay of the running mean of the weights, which is written.")
    ] = 0.999,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16; faster on CPUs with AVX512-BF16.")] = False,
) -> None:
    """Train autoencoder, text encoder and transformer on drawn scenes, score held-out prompts, write the checkpoint."""
    need_packages("training needs")
    import torch

    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.weight_files import whole_folder
    from bestofn.training.generator.autoencoder import AutoencoderSettings, train_autoencoder
    from bestofn.training.generator.pipeline import save_pipeline, score, spread
    from bestofn.training.generator.trainer import GeneratorSettings, further, train_generator

    torch.set_num_threads(threads)
    vae = run / "vae"
    with StepBar() as bar:
        if start is None and not vae.is_dir():
            autoencoder = train_autoencoder(
                AutoencoderSettings(run / "autoencoder", vae_steps, seed), lambda f: bar.show("autoencoder", f)
            )
            with whole_folder(vae) as folder:
                autoencoder.save_pretrained(folder)
        settings = GeneratorSettings(
            run / "generator",
            vae,
            steps,
            seed=seed,
            optimizer=optimizer,
            accumulate=accumulate,
            ema=ema,
            low_precision=bf16,
        )
        if start is not None:
            settings = further(settings, Checkpoint.resolve(start).path)
        state = train_generator(settings, lambda f: bar.show("generator", f))
    parts = state.averaged()
    with whole_folder(out) as folder:
        save_pipeline(parts, folder)
    say(f"wrote {out}")
    if scored:
        typer.echo(figures_text(score(parts, spread(scored))))


@program.command(
    epilog="Example: `bestofn train finetune Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers my-images "
    "--run runs/mine --out my-sana --steps 2000`; on eight GPUs: "
    "`torchrun --nproc-per-node 8 --no-python -- bestofn train finetune ...`"
)
def finetune(
    checkpoint: Annotated[str, typer.Argument(help="shapes, a folder in diffusers layout, or a hub name@revision.")],
    images: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of a.png and a.txt pairs, or *.tar of them.")
    ],
    run: Run,
    out: Out,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")],
    optimizer: Name = "came8bit",
    learning_rate: Annotated[float, typer.Option(min=0, help="The greatest, after the warm-up.")] = 1e-5,
    weight_decay: Annotated[float, typer.Option(min=0)] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Images of a forward, in each process.")] = 1,
    accumulate: Accumulate = 1,
    ema: Annotated[
        float,
        typer.Option(min=0, max=0.99999, help="Decay of the running mean of the weights, which is written; 0: none."),
    ] = 0.999,
    bf16: Bf16 = None,
    checkpointing: Annotated[bool, typer.Option(help="Less memory for activations, a third more work.")] = False,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; by default the checkpoint's.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; by default the checkpoint's.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Updates until the full learning rate.")] = 100,
    caption_dropout: Annotated[
        float, typer.Option(min=0, max=1, help="Share of images that are shown without their caption.")
    ] = 0.1,
    seed: Seed = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Updates between checkpoints.")] = 200,
    threads: Threads = 1,
) -> None:
    """Train a checkpoint's transformer on your own images and write a whole checkpoint (docs/guide/finetuning.md)."""
    need_packages("training needs")
    import torch

    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.generator import Generator
    from bestofn.training.distributed import processes, rank_and_ranks
    from bestofn.training.generator import finetune as training

    torch.set_num_threads(threads)
    source = Checkpoint.resolve(checkpoint)
    defaults = Generator(source).defaults
    width, height = width or defaults.width, height or defaults.height
    if width % defaults.size_multiple or height % defaults.size_multiple:
        raise SetupError(
            f"{source.name} takes sides that are multiples of {defaults.size_multiple}, got {width}x{height}"
        )
    with processes() as device:
        settings = training.FinetuneSettings(
            run,
            images,
            width,
            height,
            steps,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch,
            accumulate=accumulate,
            ema=ema,
            low_precision=device.type == "cuda" and torch.cuda.is_bf16_supported() if bf16 is None else bf16,
            checkpointing=checkpointing,
            warmup_steps=warmup,
            caption_dropout=caption_dropout,
            seed=seed,
            save_every=save_every,
        )
        first = rank_and_ranks()[0] == 0
        with StepBar() if first else nullcontext() as bar:
            state = training.finetune(
                source,
                settings,
                device,
                lambda figures: bar.show("fine-tuning", figures) if bar else None,
                lambda warning: say(f"warning: {warning}"),
            )
        training.write(state, source, out, f"its transformer trained for {steps} steps on images with captions")
        if first:
            say(f"wrote {out}")


@program.command(epilog="Example: `bestofn train judge --run runs/judge --out my-judge`")
def judge(
    run: Run,
    out: Out,
    generator: Annotated[
        str, typer.Option(help="Checkpoint whose images the judge learns from.")
    ] = JudgeSettings.generator,
    start: Annotated[
        str | None, typer.Option(help="Go on from a trained judge, without the rendered stage: shapes or a folder.")
    ] = None,
    rendered_steps: Annotated[int, _count(help="Updates on composed scenes.")] = JudgeSettings.rendered_steps,
    place_steps: Annotated[int, _count(help="Updates on pairs with swapped places.")] = JudgeSettings.place_steps,
    prompts: Annotated[int, _count(help="Prompts of round 0.")] = JudgeSettings.prompts,
    images: Annotated[int, _count(help="Images of each prompt of round 0.")] = JudgeSettings.images,
    steps: Annotated[int, _count(help="Updates of round 0.")] = JudgeSettings.steps,
    adversarial_rounds: Annotated[
        int, typer.Option(min=0, max=9, help="Rounds on images that fool the judge.")
    ] = JudgeSettings.adversarial_rounds,
    adversarial_prompts: Annotated[int, _count(help="Prompts of each such round.")] = JudgeSettings.adversarial_prompts,
    adversarial_images: Annotated[int, _count(help="Images of each prompt.")] = JudgeSettings.adversarial_images,
    adversarial_steps: Annotated[int, _count(help="Updates of each such round.")] = JudgeSettings.adversarial_steps,
    decay_steps: Annotated[int, _count(help="Updates of the final decay, on all rounds.")] = JudgeSettings.decay_steps,
    seed: Seed = 0,
    threads: Threads = 1,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16; faster on CPUs with AVX512-BF16.")] = True,
) -> None:
    """Train the embedded judge in rounds, calibrate it and write it with its model card.

    The shipped judge's card has its command. Every round has a folder with its images, log, checkpoint and judge.
    """
    need_packages("training needs")
    import torch

    from bestofn.training.judge.trainer import train_judge

    torch.set_num_threads(threads)
    settings = JudgeSettings(
        run,
        out,
        generator,
        start,
        seed,
        rendered_steps=rendered_steps,
        place_steps=place_steps,
        prompts=prompts,
        images=images,
        steps=steps,
        adversarial_rounds=adversarial_rounds,
        adversarial_prompts=adversarial_prompts,
        adversarial_images=adversarial_images,
        adversarial_steps=adversarial_steps,
        decay_steps=decay_steps,
        low_precision=bf16,
    )
    with StepBar() as bar:

        def show(stage: str, figures: Mapping[str, float]) -> None:
            bar.show(stage, {name: value for name, value in figures.items() if name in _JUDGE_FIGURES})
            if "auc" in figures:
                held_out = {name: figures[name] for name in ("accuracy", "chosen", "auc")}
                say(f"{stage}, held out: {figures_text(held_out)}")

        train_judge(settings, show)
    say(f"wrote {out}")


_JUDGE_FIGURES = ("step", "steps", "loss", "ordered", "chosen", "auc")
