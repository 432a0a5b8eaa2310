"""Checks of the chosen checkpoints: found, whole, pinned, licensed, and whether they fit the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bestofn.judge.names import ADDRESSES, JudgeName, Kind, members, parse_name, vlm_name
from bestofn.models.checkpoint import absent_quantiser, is_pipeline, pipeline_parts, quantised_with
from bestofn.models.errors import CheckpointError
from bestofn.models.hub import cached, is_hub_name
from bestofn.models.lora import Lora, listed, missing, split_strength
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.findings import Finding
from bestofn.service.doctor.published_sizes import published
from bestofn.service.doctor.weights.part_files import AGAIN
from bestofn.service.host.licences import HUB, licences
from bestofn.service.host.packages import can_draw_here
from bestofn.service.pairwise.calls import web_address


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint on this machine.

    Attributes:
        name: without the revision.
        kind: which code runs a judge; None: a generator.
        path: None for a hub name of which nothing is here.
        revision: as workers announce it.
        broken: reasons why it cannot be loaded.
        fix: what to do about them; empty where they say it.
        pinned: a folder, or a hub name that came with a revision.
    """

    name: str
    path: Path | None
    revision: str = ""
    broken: tuple[str, ...] = ()
    fix: str = ""
    pinned: bool = True
    kind: Kind | None = None

    @property
    def is_pipeline(self) -> bool:
        """Whether it is a generator of another family than SANA."""
        return self.kind is None and self.path is not None and is_pipeline(self.path)


def checkpoints(settings: Settings) -> Iterator[Finding]:
    """Where model and judges are, whether they are whole, what they weigh, and their licences."""
    named = (("judge", settings.judge), ("second judge", settings.second_judge))
    judges = [(kind, name) for kind, each in named if each for _, name in members(each)]
    for kind, name in (("model", settings.model), *judges):
        if can_draw_here():
            place = locate(name, kind != "model", settings.judge_api_key)
            yield from _found(kind, place)
            if kind == "model":
                yield from _pipeline(place, settings)
        yield from _licences(kind, name)
    if can_draw_here():
        for checker in image_checkers(settings):
            yield from _found("image checker", checker)
            yield from _licences("image checker", checker.name)
        yield from _loras(settings)


def _licences(kind: str, name: str) -> Iterator[Finding]:
    known = licences(name)
    for licence in known:
        where = f" ({licence.link})" if licence.link else ""
        yield Finding("ok", "licence", f"of the {kind}'s {licence.part}: {licence.name}, {licence.means}{where}")
    if not known:
        repository = parse_name(name).place.partition("@")[0]
        where = f"{HUB}{repository}" if is_hub_name(repository) else f"what came with {name}"
        yield Finding("warn", "licence", f"of the {kind}: not known here", f"read {where}")


def memory(settings: Settings) -> Iterator[Finding]:
    """Whether all fit the first device, and what to change where they do not."""
    if not can_draw_here():
        return
    import psutil
    import torch

    from bestofn.models.residency import memory_bytes
    from bestofn.service.doctor.memory import findings, needs, pipeline_memory
    from bestofn.service.engine.loader import devices

    device, model = torch.device(devices(settings)[0]), locate(settings.model)
    held = [*judges_of(settings), *image_checkers(settings)]
    if model.is_pipeline and not model.broken:
        yield pipeline_memory(model, held, device)
        return
    needed = needs(model, held, device, settings.fp8_drafts)
    if needed is None:
        yield Finding("warn", "memory", "not known before the checkpoints are here", "download them and ask again")
        return
    total = memory_bytes(device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = min(psutil.virtual_memory().available, total)
    yield from findings(needed, total, free, device.type, settings.slots)


def locate(name: str, judge: bool = False, key: str | None = None, *, checker: bool = False) -> Located:
    """A checkpoint by name, without asking the network for it, except a judge's own server, which gets `key`.

    An image checker is located as a `vlm` judge: its labels say whether it is one.
    """
    from bestofn.judge.judge import EMBEDDED as EMBEDDED_JUDGE
    from bestofn.models.checkpoint import EMBEDDED, folder_revision
    from bestofn.service.engine.judge_loader import folder_revision as judge_revision

    parsed = parse_name(name) if judge else None
    kind, place = (None, name) if parsed is None else (parsed.kind, parsed.place)
    if parsed is not None and not parsed.local:
        return _asked(parsed, key)
    folder = Path(place).expanduser()
    if place == "shapes":
        folder = EMBEDDED[place] if kind is None else EMBEDDED_JUDGE
    if folder.is_dir():
        found = folder_revision(folder) if kind is None else judge_revision(kind, folder)
        return Located(name, folder, found, *_faults(folder, kind, checker), kind=kind)
    repository, _, revision = place.partition("@")
    if not is_hub_name(place):
        reason = f"{folder} is not a folder, and a hub name looks like owner/name@revision"
        return Located(name, None, broken=(reason,), fix="name one that is there", kind=kind)
    path = cached(place)
    full = repository if kind is None else JudgeName(kind, repository).full
    if path is None:
        return Located(full, None, revision, kind=kind)
    return Located(full, path, path.name, *_faults(path, kind, checker), pinned=bool(revision), kind=kind)


@cache
def _asked(judge: JudgeName, key: str | None) -> Located:
    """A judge behind an address, with its start-up test: each question may cost money, so they are asked once."""
    import torch

    from bestofn.service.engine.judge_loader import load_judge
    from bestofn.service.pairwise.remote_judges import find_remote

    try:
        found = find_remote(judge, key).revision
        load_judge(judge.full, torch.device("cpu"), key=key)
        return Located(judge.full, None, found, kind=judge.kind)
    except SetupError as error:
        return Located(judge.full, None, broken=(error.detail,), kind=judge.kind)


def judges_of(settings: Settings) -> list[Located]:
    """The judge, and the second one where there is one; each judge of a mixture."""
    names = [settings.judge, *([settings.second_judge] if settings.second_judge else [])]
    return [locate(name, judge=True, key=settings.judge_api_key) for each in names for _, name in members(each)]


def image_checkers(settings: Settings) -> list[Located]:
    """The image checker, unless it is behind an address; at most one. It has the layout of a `vlm` judge."""
    name = settings.image_checker
    if not name or web_address(name) is not None:
        return []
    return [locate(vlm_name(name), judge=True, checker=True)]


def _found(kind: str, place: Located) -> Iterator[Finding]:
    if place.path is None and place.broken:
        yield Finding("fail", kind, f"{place.name}: {place.broken[0]}", place.fix)
    elif place.kind in ADDRESSES:
        yield Finding("ok", kind, f"{place.name}, revision {place.revision}, behind an address")
    elif place.path is None:
        sizes = published(place.name)
        size = f", {sizes.download / 1e9:.1f} GB to download" if sizes else ""
        fix = f"`bestofn models download {place.name}@REVISION`, or the first worker does it"
        yield Finding("warn", kind, f"{place.name} is not on this machine{size}", fix)
    elif place.broken:
        found = f"{place.name} at {place.path}: {'; '.join(place.broken[:3])}"
        yield Finding("fail", kind, found, place.fix)
    elif place.pinned:
        yield Finding("ok", kind, f"{place.name}, revision {place.revision}, at {place.path}")
    else:
        found = f"{place.name} without a revision: {place.revision} here, perhaps another one on other hosts"
        yield Finding("warn", kind, found, f"name it {place.name}@{place.revision}")


def _pipeline(place: Located, settings: Settings) -> Iterator[Finding]:
    """What the family of a pipeline offers to requests, and settings that it refuses."""
    if not place.is_pipeline or place.path is None or place.broken:
        return
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.pipelines.family import Family

    try:
        family = Family.of(Checkpoint(place.name, place.path, place.revision))
    except CheckpointError as error:
        yield Finding("fail", "pipeline", str(error), "name a text-to-image pipeline of diffusers")
        return
    guidance = f"{family.guidance} {family.guidance_scale:g}" if family.guidance else "no guidance scale"
    negative = "negative prompts" if family.reads_negative else "no negative prompts"
    after = "after each step" if family.callback else "at the end of each batch"
    found = f"{family.name}: {family.num_inference_steps} steps, {guidance}, {negative}; progress and cancel {after}"
    yield Finding("ok", "pipeline", found)
    for name, value in (("BESTOFN_LORA", settings.lora), ("BESTOFN_FP8_DRAFTS", settings.fp8_drafts)):
        if value:
            yield Finding("fail", "pipeline", f"{name} is for SANA only, so no worker starts", "leave it out")


def _loras(settings: Settings) -> Iterator[Finding]:
    """Whether the LoRAs of the model are here and whole."""
    try:
        absent = missing(settings.lora)
        found = [Lora.resolve(text) for text in listed(settings.lora) if split_strength(text)[0] not in absent]
    except CheckpointError as error:
        yield Finding("fail", "LoRA", str(error), "name files that are there in BESTOFN_LORA")
        return
    for name in absent:
        yield Finding(
            "warn", "LoRA", f"{name} is not on this machine", "`bestofn models download`, or the first worker does it"
        )
    for lora in found:
        yield Finding("ok", "LoRA", f"{lora.name} at strength {lora.strength:g}, {lora.file}")


def _faults(folder: Path, kind: Kind | None, checker: bool) -> tuple[tuple[str, ...], str]:
    """Why a checkpoint cannot be loaded, and what to do about it where the reasons do not say it."""
    misfits = tuple(_misfits(folder, kind, checker))
    broken = misfits or tuple(_broken(folder, kind))
    return broken, AGAIN if broken and not misfits else ""


def _misfits(folder: Path, kind: Kind | None, checker: bool) -> Iterator[str]:
    """Reasons that another copy of the folder would have too."""
    from bestofn.models.defaults import FOLDERS
    from bestofn.service.engine.judge_loader import wrong_prefix

    if kind is not None:
        if not checker and (folder / "config.json").is_file() and (fault := wrong_prefix(kind, folder)):
            yield f"it {fault}"
    elif is_pipeline(folder):
        if absent := absent_quantiser(folder):
            yield absent
    else:
        for part in FOLDERS.values():
            if (folder / part / "config.json").is_file() and (how := quantised_with(folder / part)):
                yield f"{part} is quantised with {how}, and SANA is read from plain weights only"


def _broken(folder: Path, kind: Kind | None) -> Iterator[str]:
    """Defects of a checkpoint's folder: missing parts, missing files of an index, truncated files."""
    from bestofn.judge.layout import PARTS
    from bestofn.models.defaults import FOLDERS
    from bestofn.models.weight_files import check_part

    parts = (*FOLDERS.values(), "tokenizer", "scheduler") if kind is None else PARTS if kind == "vila" else ("",)
    without = ["tokenizer", "scheduler"]
    if kind is None and is_pipeline(folder):
        found = pipeline_parts(folder)
        parts, without = tuple(found), [part for part, weights in found.items() if not weights]
    config = "model_index.json" if kind is None else "config.json"
    if not (folder / config).is_file():
        yield f"it has no {config}"
    for part in parts:
        if not (folder / part).is_dir():
            yield f"no {part}/"
            continue
        try:
            check_part(folder / part, weights=part not in without)
        except CheckpointError as error:
            yield str(error).replace(f"{folder}/", "")
