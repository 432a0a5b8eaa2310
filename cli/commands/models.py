"""bestofn models: look into checkpoints, download published ones, make random, deeper or shallower ones."""

import json as jsonlib
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from bestofn.cli.commands.checkpoint_files import about as facts_of
from bestofn.cli.commands.checkpoint_files import add_to as add_files
from bestofn.cli.commands.checkpoint_files import check_fetched
from bestofn.cli.console import need_packages, say
from bestofn.cli.progress_bar import StepBar
from bestofn.judge.names import JudgeName, members, parse_name, vlm_name
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import load_settings

if TYPE_CHECKING:
    from bestofn.models.checkpoint import Checkpoint

program = typer.Typer(
    no_args_is_help=True, help="Look into checkpoints, download published ones, make random, deeper or shallower ones."
)

add_files(program)

Source = Annotated[str, typer.Argument(help="shapes, a folder, or a hub name with @revision.", show_default=False)]
Calibration = Annotated[
    Path | None, typer.Option(help="Prompts for calibration, one a line, as your users write them.")
]
CalibrationSteps = Annotated[int | None, typer.Option(min=1, help="Denoising steps while calibrating.")]
Devices = Annotated[str | None, typer.Option(help="cpu or cuda:0; the first GPU if there is one.")]


@program.command(epilog="Example: `bestofn models random --like sana1.5-1.6b ./random-1.6b`")
def random(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    like: Annotated[str, typer.Option(help="Layout, such as sana1.5-1.6b, nvila-lite-2b or tiny.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same bytes.")] = 0,
) -> None:
    """Write a checkpoint of true shape with random weights: loading, memory and speed do not depend on values."""
    need_packages("checkpoints need")
    from bestofn.models.random_init.checkpoint import make_random_checkpoint

    make_random_checkpoint(like, out, seed)
    say(f"wrote {out} ({_size(out) / 2**30:.2f} GiB)")


@program.command(epilog="Example: `bestofn models inspect shapes`")
def inspect(
    folder: Source,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON, by kind: generator, judge or both.")] = False,
) -> None:
    """Say what a generator or a judge is: parts, parameters, storage, revision and call defaults."""
    need_packages("checkpoints need")
    found = facts_of(folder)
    if json:
        typer.echo(jsonlib.dumps(found, indent=2))
        return
    for name, about in found.items():
        typer.echo(f"{name} {about['name']} at {about['path']}, revision {about['revision']}")
        for part, facts in about["parts"].items():
            typer.echo(
                f"  {part:14} {facts['class']:32} {facts['parameters'] / 1e6:10.2f} M parameters, "
                f"{facts['bytes'] / 2**20:9.1f} MiB as {facts['dtype']}"
            )
        for field, value in about.get("defaults", {}).items():
            typer.echo(f"  {field:28} {value}")
        if "template" in about:
            typer.echo(f"  template, with the question and {{prompt}}:\n{about['template']}")


@program.command(epilog="Example: `bestofn models download Efficient-Large-Model/NVILA-Lite-2B-Verifier@main`")
def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Hub names with @revision.", metavar="NAME", show_default="those of the settings"),
    ] = None,
) -> None:
    """Fetch checkpoints into the hub's cache (HF_HOME), and print each with the commit that a deployment should pin.

    It needs no torch. The licences, which are not ours, come first. Without names it fetches what workers would hold:
    BESTOFN_MODEL, BESTOFN_LORA, BESTOFN_JUDGE, BESTOFN_SECOND_JUDGE and BESTOFN_IMAGE_CHECKER. Checkpoints are then
    checked as `bestofn models check` does, without names and shapes; exit status 1 if a worker would refuse them.
    """
    from bestofn.models.lora import Lora, missing
    from bestofn.service.host.licences import notice

    settings = load_settings()
    if not names:
        for name in missing(settings.lora):
            say(f"{name}: {Lora.resolve(name).file}")
    judges = [name for each in (settings.judge, settings.second_judge) if each for _, name in members(each)]
    checkers = [vlm_name(name) for name in [settings.image_checker] if name and parse_name(name).kind != "http"]
    names = names or list(dict.fromkeys((settings.model, *judges, *checkers)))
    wanted = [name for name in names if notice(name) is not None]
    for name in wanted:
        say(str(notice(name)))
    fetched = {name: _fetch(name) for name in wanted}
    for name in names:
        typer.echo(fetched.get(name, name))  # shapes and folders are here
    for full_name in fetched.values():
        check_fetched(full_name)


@program.command(epilog="Example: `bestofn models grow --to 2x shapes ./deep-shapes`")
def grow(
    checkpoint: Source,
    out: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    to: Annotated[str, typer.Option(help="The new depth: 2x, or a number of layers.")] = "2x",
    method: Annotated[str, typer.Option(help="partial (preservation), cyclic or block (replication).")] = "partial",
    drop: Annotated[int, typer.Option(min=0, help="Last layers that partial preservation leaves out.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of new weights.")] = 0,
) -> None:
    """Write a deeper checkpoint to train further: what it keeps of the trained layers it computes from the start."""
    need_packages("checkpoints need")
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.depth.growth import METHODS, target_layers
    from bestofn.models.depth.growth import grow as write
    from bestofn.models.linear_dit.config import LinearDiTConfig

    if method not in METHODS:
        raise typer.BadParameter(f"--method is one of {', '.join(METHODS)}, got {method!r}")
    source = Checkpoint.resolve(checkpoint)
    config = LinearDiTConfig.from_file(source.path / "transformer" / "config.json")
    layers = target_layers(to, config.num_layers)
    if config.qk_norm is None:
        say("this checkpoint has no q/k norm, without which training a deep one is unstable in half precision")
    write(source, out, layers, method, drop, seed)
    say(f"wrote {out}: {layers} layers, {_size(out) / 2**30:.2f} GiB")


@program.command(epilog="Example: `bestofn models importance --prompts prompts.txt ./sana1.5`")
def importance(
    checkpoint: Source,
    prompts: Calibration = None,
    steps: CalibrationSteps = None,
    devices: Devices = None,
    seed: Annotated[int, typer.Option(min=0, help="Of calibration.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print importances as JSON.")] = False,
) -> None:
    """Measure how much each layer matters and note it in the checkpoint's folder: then requests may choose a depth.

    Workers read it when they start; `--depth D` of `bestofn generate` draws with the D layers that matter most.
    """
    need_packages("checkpoints need")
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.depth.pruning import store_importance

    source = Checkpoint.resolve(checkpoint)
    values, count = _measure(source, prompts, steps, devices, seed)
    whose = "of the drawn world" if prompts is None else f"from {prompts.name}"
    how = f"1 - cosine of a block's input and output; {count} prompts {whose}, {steps or 'default'} steps, seed {seed}"
    path = store_importance(source, values, how)
    if json:
        typer.echo(jsonlib.dumps({"importance": values}))
    else:
        _print_importance(values, ())
    say(f"wrote {path}")


@program.command(epilog="Example: `bestofn models prune --layers 4 --recover 100 shapes ./light-shapes`")
def prune(
    checkpoint: Source,
    out: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    layers: Annotated[int, typer.Option(min=1, help="Layers that stay.", show_default=False)],
    prompts: Calibration = None,
    steps: CalibrationSteps = None,
    recover: Annotated[int, typer.Option(min=0, help="Training steps afterwards; the drawn world only.")] = 0,
    rate: Annotated[
        float, typer.Option(min=0.001, max=1, help="Of --recover: its first rate, as a share of a fresh run's.")
    ] = 1.0,
    devices: Devices = None,
    seed: Annotated[int, typer.Option(min=0, help="Of calibration and training.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print importances and what stays as JSON.")] = False,
) -> None:
    """Leave out the layers that matter least: those that turn their input least while images are drawn."""
    need_packages("checkpoints need")
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.depth.pruning import kept_blocks
    from bestofn.models.depth.pruning import prune as write
    from bestofn.models.linear_dit.config import LinearDiTConfig
    from bestofn.training.generator.pipeline import check_trainable
    from bestofn.training.generator.recovery import recover as train

    source = Checkpoint.resolve(checkpoint)
    if recover:
        check_trainable(source.path)
    config = LinearDiTConfig.from_file(source.path / "transformer" / "config.json")
    kept_blocks([0.0] * config.num_layers, layers)  # refuses a depth before anything is drawn
    values, _ = _measure(source, prompts, steps, devices, seed)
    kept = kept_blocks(values, layers)
    if recover:
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work, StepBar() as bar:
            start = write(source, Path(work) / "start", kept)
            train(start, out, Path(work), recover, lambda f: bar.show("training", f), seed, rate=rate)
    else:
        write(source, out, kept)
    if json:
        typer.echo(jsonlib.dumps({"importance": values, "kept": kept}))
    else:
        _print_importance(values, kept)
    say(f"wrote {out}: {layers} layers, {_size(out) / 2**30:.2f} GiB")


def _measure(
    source: "Checkpoint", prompts: Path | None, steps: int | None, devices: str | None, seed: int
) -> tuple[list[float], int]:
    """Importances of a checkpoint's layers, and the number of prompts they were measured with."""
    from bestofn.evaluation.files import read_lines
    from bestofn.models.depth.pruning import block_importance, calibration_prompts
    from bestofn.models.generator import Generator
    from bestofn.service.core.settings import load_settings
    from bestofn.service.engine.loader import devices as found

    generator = Generator(source, found(load_settings(devices=devices))[0])
    if prompts is None and source.name != "shapes":
        say("calibrating with prompts of the drawn world; --prompts FILE takes prompts like your users'")
    lines = [line.strip() for _, line in read_lines(prompts)] if prompts else calibration_prompts(seed)
    with StepBar() as bar:

        def show(done: int) -> None:
            bar.show("calibrating", {"step": done, "steps": len(lines)})

        values = block_importance(generator, lines, seed, steps, show)
    return values, len(lines)


def _print_importance(values: Sequence[float], kept: Collection[int]) -> None:
    for block, value in enumerate(values):
        bar = "#" * round(40 * value / max(values))
        typer.echo(f"layer {block:3} {'stays' if block in kept else '     '} {value:.4f} {bar}")


def _fetch(name: str) -> str:
    """Downloads what is missing of a checkpoint, and returns its name with the commit."""
    from huggingface_hub.constants import HF_HOME

    from bestofn.models import hub
    from bestofn.models.errors import CheckpointError

    parsed = parse_name(name)
    repository = parsed.place.partition("@")[0]

    def named(commit: str) -> str:
        return JudgeName(parsed.kind, f"{repository}@{commit}").full

    try:
        missing = hub.bytes_to_download(parsed.place)
    except CheckpointError as error:
        here = hub.cached(parsed.place)
        if here is None:
            raise
        say(f"{error}; what is in {HF_HOME} stays in use")
        return named(here.name)
    Path(HF_HOME).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(HF_HOME).free
    if missing > free:
        raise SetupError(
            f"{repository} takes {missing / 2**30:.1f} GiB more and {HF_HOME} has {free / 2**30:.1f} GiB free: "
            "free some, or set HF_HOME to another disk"
        )
    say(f"{repository}: {missing / 2**30:.2f} GiB to fetch into {HF_HOME}")
    return named(hub.download(parsed.place).name)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
