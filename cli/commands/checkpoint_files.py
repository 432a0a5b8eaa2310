"""bestofn models inspect, check and convert: what a checkpoint's files hold, and files of another layout."""

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestofn.cli.commands.doctor import exit_on_failures, finding_lines
from bestofn.cli.console import need_packages, say
from bestofn.judge.names import JudgeName, JudgeNameError
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import load_settings

if TYPE_CHECKING:
    from bestofn.models.checkpoint import Checkpoint


def about(name: str) -> dict[str, dict[str, Any]]:
    """What there is under a name: a generator, a judge, or ("shapes") both."""
    from bestofn.judge.loader import JudgeFolderError
    from bestofn.models.checkpoint import Checkpoint, pipeline_parts
    from bestofn.models.defaults import FOLDERS
    from bestofn.models.errors import CheckpointError
    from bestofn.service.engine.judge_loader import find_judge, judge_parts

    found: dict[str, dict[str, Any]] = {}
    reasons = []
    try:
        checkpoint = Checkpoint.resolve(name, any_pipeline=True)
        if checkpoint.is_sana:
            defaults = vars(checkpoint.call_defaults()).copy()
            defaults["complex_human_instruction"] = f"{len(defaults['complex_human_instruction'])} lines"
            weighing = FOLDERS
        else:
            defaults = _of_pipeline(checkpoint)
            weighing = {part: part for part, weights in pipeline_parts(checkpoint.path).items() if weights}
        parts = {part: _part(checkpoint.path / folder) for part, folder in weighing.items()}
        found["generator"] = {
            "name": checkpoint.name,
            "path": str(checkpoint.path),
            "revision": checkpoint.revision,
            "parts": parts,
            "defaults": defaults,
        }
    except CheckpointError as error:
        reasons.append(str(error))
    try:
        judge = find_judge(name, key=load_settings().judge_api_key)
        folders = [] if judge.path is None else judge_parts(judge.name.kind, judge.path)
        found["judge"] = {
            "name": judge.revision.name,
            "path": judge.name.place,
            "revision": judge.revision.revision,
            "parts": {part.name: _part(part) for part in folders},
            **_asked(judge.name),
        }
    except (JudgeNameError, JudgeFolderError, CheckpointError) as error:
        reasons.append(str(error))
    if not found:
        raise SetupError(f"{name!r} is not a generator ({reasons[0]}) and not a judge ({reasons[1]})")
    return found


def _of_pipeline(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Class and call defaults of a pipeline of another family than SANA."""
    from bestofn.models.pipelines.family import Family

    family = Family.of(checkpoint)
    return {
        "pipeline": family.name,
        "num_inference_steps": family.num_inference_steps,
        "guidance": family.guidance,
        "guidance_scale": family.guidance_scale,
        "negative_prompt": family.reads_negative,
        "callback": family.callback,
    }


def _asked(judge: JudgeName) -> dict[str, str]:
    """The text by which a vision-language model is asked, as its processor writes it."""
    if judge.kind != "vlm":
        return {}
    from bestofn.judge.conversation import Conversation
    from bestofn.judge.loader import refused

    folder = Path(judge.place)
    with refused(folder):
        return {"template": Conversation.read(folder).template}


def _part(folder: Path) -> dict[str, Any]:
    from bestofn.models.residency import stored_dtype, weight_bytes

    config = jsonlib.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    named = config.get("_class_name") or ", ".join(config.get("architectures") or []) or config.get("model_type", "")
    return {
        "class": named,
        "parameters": weight_bytes(folder, 1),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "dtype": stored_dtype(folder),
    }


def check(
    name: Annotated[str, typer.Argument(help="shapes, a folder, or a hub name with @revision.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Compare a checkpoint's configs, indexes, headers and tokenizer with what the loaders take; reads no weights.

    A finding says what a disagreement would do. Names and shapes of weights are checked where torch is installed. Exit
    status 1 if a worker would refuse the checkpoint.
    """
    from bestofn.service.doctor.weights.check import check as findings
    from bestofn.service.doctor.weights.check import folders

    found = [(folder, finding) for folder in folders(name) for finding in findings(folder)]
    if json:
        listed = [{"folder": str(folder), **asdict(finding)} for folder, finding in found]
        typer.echo(jsonlib.dumps(listed, indent=2))
    else:
        for folder in dict.fromkeys(folder for folder, _ in found):
            typer.secho(str(folder), bold=True)
            for line in (line for where, one in found if where == folder for line in finding_lines(one, None)):
                typer.echo(line)
    exit_on_failures([finding for _, finding in found])


def check_fetched(name: str) -> None:
    """The check of a checkpoint that was just downloaded, from its files alone.

    Raises:
        SetupError: a worker would refuse it.
    """
    from bestofn.service.doctor.weights.check import check_files, folders

    bad = [finding for folder in folders(name) for finding in check_files(folder) if finding.state != "ok"]
    for finding in bad:
        say(f"{name}: {finding.what}: {finding.found} ({finding.fix})")
    failed = [finding for finding in bad if finding.state == "fail"]
    if failed:
        raise SetupError(f"{name} is downloaded, and workers would refuse it: {failed[0].what}: {failed[0].found}")


def convert(
    file: Annotated[Path, typer.Argument(help="A .pth of SANA's own repository.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    base: Annotated[
        str | None,
        typer.Option(help="Checkpoint in diffusers layout whose other parts are copied.", show_default="none"),
    ] = None,
    size: Annotated[int, typer.Option(min=256, help="Pixels a side that the model was made for.")] = 1024,
) -> None:
    """Write SANA's own .pth layout as a checkpoint in diffusers layout, checked key by key.

    Shapes are taken from the file, and no code that is pickled in it is run. Without --base only transformer/ is
    written.
    """
    need_packages("checkpoints need")
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.sana_pth import convert as write

    config = write(file, out, size, None if base is None else Checkpoint.resolve(base))
    kind = "SANA-Sprint" if config.guidance_embeds else "SANA"
    say(f"wrote {out}: {kind} of {config.num_layers} layers and width {config.width}")
    if base is None:
        say("it has no text encoder, tokenizer, autoencoder and scheduler: --base NAME copies those of a checkpoint")


def add_to(program: typer.Typer) -> None:
    program.command(epilog="Example: `bestofn models check shapes`")(check)
    program.command(epilog="Example: `bestofn models convert SANA1.5_1.6B.pth --out ./sana --base NAME`")(convert)
