"""bestofn train: the shapes generator and the shapes judge, from nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bestofn.service.cli import target
from bestofn.service.cli.console import err, say
from bestofn.service.errors import SetupError

program = typer.Typer(no_args_is_help=True, help="Train the shapes models. A run that was cut off goes on.")

Run = Annotated[Path, typer.Option(help="Folder of the run's checkpoints and log; a run that is in it goes on.")]
Out = Annotated[Path, typer.Option(help="Folder that the trained model is written to.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


class _Bar:
    """A progress bar with the figures that a training hands out."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=err,
        )
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, stage: str, figures: Mapping[str, float]) -> None:
        """`step` of `steps`, and everything else as text."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, figures="")
        rest = _text({name: value for name, value in figures.items() if name not in ("step", "steps")})
        self._bar.update(
            self._tasks[stage],  # type: ignore[arg-type]
            completed=max(0.0, figures["step"]),
            total=figures["steps"],
            figures=rest,
        )


def _text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


@program.command(epilog="Example: `bestofn train generator --run runs/generator --out my-shapes --steps 3000`")
def generator(
    run: Run,
    out: Out,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the transformer.")] = 3000,
    vae_steps: Annotated[int, typer.Option(min=1, help="Updates of the autoencoder, before.")] = 1700,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Threads = 1,
    scored: Annotated[int, typer.Option(min=0, help="Held-out prompts a category for the score; 0 for none.")] = 10,
    start: Annotated[
        str | None, typer.Option(help="Go on from a trained checkpoint, such as a grown one; shapes or a folder.")
    ] = None,
) -> None:
    """Train autoencoder, text encoder and transformer on drawn scenes, score held-out prompts, write the checkpoint."""
    _need_packages()
    import torch

    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.training.autoencoder import AutoencoderSettings, train_autoencoder
    from bestofn.models.training.generator import GeneratorSettings, further, train_generator
    from bestofn.models.training.pipeline import CALL_DEFAULTS, sample, save_pipeline
    from bestofn.models.training.runs import publish
    from bestofn.models.training.score import score, spread

    torch.set_num_threads(threads)
    vae = run / "vae"
    with _Bar() as bar:
        if start is None and not vae.is_dir():
            autoencoder = train_autoencoder(
                AutoencoderSettings(run / "autoencoder", vae_steps, seed), lambda f: bar.show("autoencoder", f)
            )
            publish(vae, autoencoder.save_pretrained)
        settings = GeneratorSettings(run / "generator", vae, steps, seed=seed)
        if start is not None:
            settings = further(settings, Checkpoint.resolve(start).path)
        learner = train_generator(settings, lambda f: bar.show("generator", f))
    parts = learner.averaged()
    publish(out, lambda folder: save_pipeline(parts, folder))
    say(f"wrote {out}")
    if scored:
        call_steps, guidance = CALL_DEFAULTS["num_inference_steps"], CALL_DEFAULTS["guidance_scale"]
        assert isinstance(call_steps, int)
        assert isinstance(guidance, float)
        figures = score(
            lambda prompts, seeds: list(sample(parts, prompts, seeds, call_steps, guidance).numpy()), spread(scored)
        )
        typer.echo(_text(figures))


@program.command(epilog="Example: `bestofn train judge --run runs/judge --out my-judge --generator my-shapes`")
def judge(
    run: Run,
    out: Out,
    generator: Annotated[str, typer.Option(help="Whose pictures the judge learns from in the end.")] = "shapes",
    steps: Annotated[int, typer.Option(min=1, help="Updates on drawn scenes.")] = 880,
    tuning_steps: Annotated[int, typer.Option(min=0, help="Updates on the generator's pictures.")] = 750,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Threads = 1,
) -> None:
    """Train an NVILA on drawn scenes, then on a generator's own pictures; scores and writes it again and again."""
    _need_packages()
    import torch

    from bestofn.service.train_judge import JudgeSettings, train_judge

    torch.set_num_threads(threads)
    settings = JudgeSettings(run, out, steps=steps, tuning_steps=tuning_steps, generator=generator, seed=seed)
    with _Bar() as bar:

        def show(figures: Mapping[str, float]) -> None:
            drawing = "drawing" in figures
            bar.show(
                "drawing" if drawing else "judge",
                {name: value for name, value in figures.items() if name != "drawing"},
            )

        train_judge(settings, show, lambda figures: say(f"held out: {_text(figures)}"))
    say(f"wrote {out}")


def _need_packages() -> None:
    if not target.can_draw_here():
        raise SetupError("training needs the worker's packages: pip install 'bestofn[worker]'")
