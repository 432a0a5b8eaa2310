"""From a judge's name to a judge: its weights are found, pinned and loaded, and its info is written."""

import hashlib
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from bestofn.judge.calibration import FILE as CALIBRATION
from bestofn.judge.calibration import Calibration
from bestofn.judge.calibration import read as read_calibration
from bestofn.judge.interface import PointwiseJudge
from bestofn.judge.judge import EMBEDDED, Judge
from bestofn.judge.layout import PARTS, prefix_of
from bestofn.judge.loader import JudgeFolderError, flat_revision, read_json, refused, revision
from bestofn.judge.mixture import Member, MixtureJudge
from bestofn.judge.names import JudgeName, Kind, members, mixture_name, parse_name
from bestofn.judge.self_test import self_test
from bestofn.models import residency
from bestofn.models.flops import TERA
from bestofn.models.hub import cached, download, local_folder
from bestofn.models.sampling import LoadedGenerator
from bestofn.models.weight_files import check_part
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import Revision
from bestofn.service.core.workers import JudgeInfo, PromptLimit
from bestofn.service.host.licences import notice

_FIXES: dict[Kind, str] = {
    "vila": "Copy or download its weights again",
    "vlm": "`bestofn models inspect` shows its template; put another `question` into its bestofn.json",
    "clip": "Take another model",
    "openai": "Take a model that reads images, answers yes or no at once and returns log-probabilities",
    "http": "Correct the score server, whose log may say more",
}


@dataclass(frozen=True, slots=True)
class JudgeCheckpoint:
    """A judge that was found and pinned, and is not loaded yet.

    Attributes:
        name: which code runs it, and its folder on this machine or its address.
        revision: as workers announce it.
        max_tiles: maximum number of tiles that NVILA cuts an image into; None: its folder's.
        key: API key of its server.
    """

    name: JudgeName
    revision: Revision
    max_tiles: int | None = None
    key: str | None = None

    @property
    def path(self) -> Path | None:
        """Folder of its weights; None: it is behind an address."""
        return Path(self.name.place) if self.name.local else None

    @property
    def file(self) -> Path | None:
        """Calibration file in its folder."""
        return None if self.path is None else self.path / CALIBRATION

    def load(
        self, device: torch.device, calibration: Calibration | None = None, *, tested: bool = False
    ) -> PointwiseJudge:
        """Read it onto a device; see `load_judge`."""
        return load_judge(self.name.full, device, self.max_tiles, calibration, self.key, tested=tested)

    def weight_bytes(self, device: torch.device) -> int:
        """Bytes of its weights on a device."""
        each = (parse_name(name) for _, name in members(self.name.full))
        return sum(judge_bytes(one.kind, Path(one.place), device) for one in each if one.local)


def load_judge(
    name: str,
    device: torch.device,
    max_tiles: int | None = None,
    calibration: Calibration | None = None,
    key: str | None = None,
    *,
    tested: bool = False,
) -> PointwiseJudge:
    """A judge read onto a device.

    Args:
        name: `JudgeCheckpoint.name.full`.
        device: where it runs.
        max_tiles: maximum number of tiles that NVILA cuts an image into; None: its folder's.
        calibration: decides which rewards of a judge without words are a yes.
        key: API key of the judge's server.
        tested: it has passed its start-up test before, and is read again after an offload.

    Raises:
        JudgeFolderError: the folder does not hold a judge that this code can run.
        JudgeAway: its server gives no verdict in its start-up test.
        SetupError: the judge fails that test. Of NVILA, whose question and template are its own, it asks for
            verdicts, in any order.
    """
    parsed = parse_name(name)
    if parsed.kind == "mixture":
        return MixtureJudge(
            [
                Member(load_judge(one, device, max_tiles, fitted, key, tested=tested), weight, fitted)
                for weight, one in members(name)
                for fitted in [_calibration_within(one, max_tiles)]
            ]
        )
    judge = _load_one(parsed, device, max_tiles, calibration, key)
    if tested:
        return judge
    with refused(Path(parsed.place)) if parsed.local else nullcontext():
        fault = self_test(judge, ordered=parsed.kind != "vila")
    if fault is not None:
        raise SetupError(f"the judge {name} fails its start-up test: {fault}. {_FIXES[parsed.kind]}")
    return judge


def _load_one(
    parsed: JudgeName,
    device: torch.device,
    max_tiles: int | None,
    calibration: Calibration | None,
    key: str | None,
) -> PointwiseJudge:
    if not parsed.local:
        from bestofn.service.pairwise.remote_judges import load_remote

        return load_remote(parsed, key, calibration)
    folder, dtype = Path(parsed.place), judge_dtype(device, parsed.kind)
    if parsed.kind == "vila":
        return Judge.load(folder, device, dtype, max_tiles)
    if parsed.kind == "vlm":
        from bestofn.judge.vlm import VlmJudge

        return VlmJudge.load(folder, device, dtype)
    from bestofn.judge.clip import ClipJudge

    return ClipJudge.load(folder, device, dtype, calibration)


def find_judge(name: str, max_tiles: int | None = None, key: str | None = None) -> JudgeCheckpoint:
    """A judge by name (`names.parse_name`): "shapes" (the embedded one), a folder, a hub name with
    @revision, or an address, whose server gets `key`.

    Fewer tiles give other verdicts, so a limit is part of NVILA's revision.

    Raises:
        JudgeNameError, JudgeFolderError, CheckpointError: saying what was looked for and where.
        SetupError: the server of an address does not answer.
    """
    parsed = parse_name(name)
    if len(members(name)) > 1:
        return _find_mixture(name, max_tiles, key)
    if not parsed.local:
        from bestofn.service.pairwise.remote_judges import find_remote

        return JudgeCheckpoint(parsed, find_remote(parsed, key), key=key)
    kind, repository = parsed.kind, parsed.place
    max_tiles = max_tiles if kind == "vila" else None
    folder = EMBEDDED if parsed.place == "shapes" else local_folder(parsed.place, "judge")
    fetched = folder is None
    if folder is None:
        repository = parsed.place.partition("@")[0]
        say_licence(name)
        folder = download(parsed.place)
    parts = judge_parts(kind, folder)
    if fault := wrong_prefix(kind, folder):
        raise JudgeFolderError(f"{folder.absolute()} {fault}")
    for part in parts:
        check_part(part)
    pinned = folder.name if fetched else folder_revision(kind, folder)
    tiles = "" if max_tiles is None else f"+{max_tiles}-tiles"
    found = Revision(name=JudgeName(kind, repository).full, revision=pinned + tiles)
    return JudgeCheckpoint(JudgeName(kind, str(folder)), found, max_tiles)


def _find_mixture(name: str, max_tiles: int | None, key: str | None) -> JudgeCheckpoint:
    """A mixture (`names.members`), whose revision depends on all that its verdicts do."""
    weights, names = zip(*members(name), strict=True)
    found = [find_judge(one, max_tiles, key) for one in names]
    fitted = [calibration_of(one, None) for one in found]
    parts = [(weight, one.revision.revision, repr(c)) for weight, one, c in zip(weights, found, fitted, strict=True)]
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    shown, places = (
        mixture_name(zip(weights, texts, strict=True))
        for texts in ([one.revision.name for one in found], [one.name.full for one in found])
    )
    return JudgeCheckpoint(JudgeName("mixture", places), Revision(name=shown, revision=digest), max_tiles, key)


def _calibration_within(name: str, max_tiles: int | None) -> Calibration | None:
    """The calibration in the folder of a judge that `find_judge` found, as `calibration_of`."""
    parsed = parse_name(name)
    file = Path(parsed.place) / CALIBRATION
    tiled = parsed.kind == "vila" and max_tiles is not None
    return read_calibration(file) if parsed.local and not tiled and file.is_file() else None


def folder_revision(kind: Kind, folder: Path) -> str:
    """The revision of a judge in a folder: 12 hexadecimal digits over the files that decide a verdict."""
    return revision(folder) if kind == "vila" else flat_revision(folder)


def wrong_prefix(kind: Kind, folder: Path) -> str | None:
    """What to write if the folder is of a judge that another prefix names; None if not, as far as its config says."""
    try:
        right = prefix_of(read_json(folder / "config.json"))
    except JudgeFolderError as error:
        return f"cannot be used: {error}"
    return f"is not of the kind {kind}: write {right}: before its name" if right not in (None, kind) else None


def judge_parts(kind: Kind, folder: Path) -> list[Path]:
    """The folders of a judge's weights: NVILA's parts, or the folder itself.

    Raises:
        JudgeFolderError: the folder has another layout.
    """
    parts = [folder / part for part in PARTS] if kind == "vila" else [folder]
    if kind == "vila" and not all(part.is_dir() for part in parts):
        raise JudgeFolderError(
            f"{folder.absolute()} has not all of {', '.join(f'{part}/' for part in PARTS)}: not a VILA checkpoint. "
            "Put vlm: or clip: before the name of another model"
        )
    if kind != "vila" and not (folder / "config.json").is_file():
        raise JudgeFolderError(f"{folder.absolute()} has no config.json: not a model of transformers")
    return parts


def judge_bytes(kind: Kind, folder: Path, device: torch.device) -> int:
    """Bytes of a judge's weights on a device."""
    itemsize = judge_dtype(device, kind).itemsize
    return sum(residency.weight_bytes(part, itemsize) for part in judge_parts(kind, folder))


def judge_dtype(device: torch.device, kind: Kind = "vila") -> torch.dtype:
    """float32 on a CPU. On a GPU float16 for NVILA, which was made in it; bfloat16 for others, which may overflow."""
    if device.type != "cuda":
        return torch.float32
    return torch.float16 if kind == "vila" else torch.bfloat16


def judge_info(
    judge: PointwiseJudge, revision: Revision, generator: LoadedGenerator, calibration: Calibration | None
) -> JudgeInfo:
    """What the API has to know of a judge; its cost is that of an image of the generator's default size."""
    size = generator.defaults.width, generator.defaults.height
    limit = None
    if isinstance(judge, Judge):
        limit = PromptLimit(
            tokenizer_sha256=hashlib.sha256(judge.tokenizer_json).hexdigest(),
            question=judge.question_text,
            tokens=judge.prompt_limit(judge.tiles(*size)),
        )
    return JudgeInfo(
        revision=revision,
        tflops_per_forward=judge.flops(*size) / TERA,
        calibration=calibration,
        prompt_limit=limit,
    )


def calibration_of(judge: JudgeCheckpoint, file: Path | None) -> Calibration | None:
    """The calibration of a judge: from `file`, else from its folder; None if there is none.

    The calibration in its folder holds for the default number of tiles only.

    Raises:
        SetupError: the file does not exist, or holds no calibration of this judge.
    """
    path = file or judge.file
    if path is None or (file is None and (judge.max_tiles is not None or not path.is_file())):
        return None
    try:
        return read_calibration(path, judge.revision.revision)
    except ValueError as error:
        raise SetupError(f"calibration: {error}") from error


def yes_above(judge: JudgeCheckpoint) -> float | None:
    """Log-odds above which a judge answers yes: 0, or what the calibration of a CLIP says.

    Returns:
        None where a CLIP has no calibration in its folder, alone or in a mixture: its log-odds are far above 0 for
        most images.
    """
    clips = [one for one in (parse_name(name) for _, name in members(judge.name.full)) if one.kind == "clip"]
    fitted = {one.place: _calibration_within(one.full, None) for one in clips}
    for place, calibration in fitted.items():
        if calibration is None and read_json(Path(place) / "config.json").get("model_type") == "clip":
            return None
    own = fitted.get(judge.name.place)  # a mixture's log-odds are calibrated
    return 0.0 if own is None else own.even_margin


def say_licence(name: str) -> None:
    """States the licence of weights that are about to be downloaded, on stderr; nothing of those that are here."""
    place = parse_name(name).place
    line = notice(place)
    if line is not None and not Path(place).is_dir() and cached(place) is None:
        sys.stderr.write(f"{line}\n")
