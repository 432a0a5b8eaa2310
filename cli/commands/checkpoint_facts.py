"""What bestofn models inspect shows of a checkpoint: parts, storage, revision, defaults and a judge's template."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    return {"template": Conversation.read(Path(judge.place)).template}


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
