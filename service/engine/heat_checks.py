"""Checks of a heat before the engine takes it, and words for what fails."""

from bestofn.service.core.jobs import Heat
from bestofn.service.core.workers import JudgeInfo, ModelInfo
from bestofn.service.engine.scheduler import Group


def check_heat(heat: Heat, model: ModelInfo, judge: JudgeInfo) -> None:
    """Check that an engine's model and judges are those of a heat, and that its size and layers can be drawn.

    Raises:
        ValueError: another revision, size or layer is asked for.
    """
    spec = heat.job
    for asked, mine in zip(spec.revisions, (model.revision, *judge.revisions), strict=True):
        if asked != mine:
            holds, asks = (f"{one.name}@{one.revision}" if one else "no second judge" for one in (mine, asked))
            raise ValueError(f"this engine holds {holds}, the heat asks for {asks}")
    if spec.sent:
        return
    multiple, depth = model.size_multiple, model.depth or 0
    if min(spec.width, spec.height) < multiple or spec.width % multiple or spec.height % multiple:
        raise ValueError(f"width and height must be multiples of {multiple}, got {spec.width}x{spec.height}")
    if wrong := [layer for layer in (spec.layers or ()) + (spec.draft_layers or ()) if not 0 <= layer < depth]:
        raise ValueError(f"layer {wrong[0]} does not exist: this engine's transformer has layers 0 to {depth - 1}")


def denoising(group: Group) -> str:
    """The denoising of a group, for messages."""
    return f"denoising an image of {group.width}x{group.height} pixels"
