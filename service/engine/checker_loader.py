"""From an image checker's name to the checker: found, pinned and loaded."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from bestofn.judge.checker import CheckFailed, ImageChecker
from bestofn.judge.loader import refused
from bestofn.models.flops import TERA
from bestofn.models.hub import download, local_folder
from bestofn.models.weight_files import check_part
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import CHECKED
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import JudgeInfo
from bestofn.service.engine.judge_loader import folder_revision, judge_bytes, judge_dtype, say_licence
from bestofn.service.pairwise.calls import run_call
from bestofn.service.pairwise.check_server import CheckServer
from bestofn.service.pairwise.remote_judges import RemoteChecker


@dataclass(frozen=True, slots=True)
class FoundChecker:
    """An image checker that was found and pinned, and is not loaded yet.

    Attributes:
        place: its folder on this machine, or its server.
        revision: 12 hexadecimal digits over all that it decides by, or the commit of a hub name.
    """

    place: Path | CheckServer
    revision: str

    def load(self, device: torch.device) -> ImageChecker:
        """Read it onto a device.

        Raises:
            JudgeFolderError: the folder does not hold a classifier that this code can run.
            SetupError: it gives no answer about a grey image.
        """
        if isinstance(self.place, CheckServer):
            checker: ImageChecker = RemoteChecker(self.place)
        else:
            from bestofn.judge.classifier import ClassifierChecker

            checker = ClassifierChecker.load(self.place, device, judge_dtype(device, "vlm"))
        with refused(self.place) if isinstance(self.place, Path) else nullcontext():
            rows = list(checker.ask(torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)))
        try:
            for row in rows:
                checker.unsafe(row)
        except CheckFailed as error:
            raise SetupError(f"the image checker fails its start-up test: {error}") from error
        return checker

    def weight_bytes(self, device: torch.device) -> int:
        """Bytes of its weights on a device."""
        return judge_bytes("vlm", self.place, device) if isinstance(self.place, Path) else 0


def find_checker(settings: Settings) -> FoundChecker | None:
    """The image checker that the settings name; None: none.

    Raises:
        JudgeFolderError, CheckpointError: saying what was looked for and where.
        SetupError: the server of an address does not answer.
    """
    if not settings.image_checker:
        return None
    name = settings.image_checker.removeprefix("vlm:")  # as `bestofn models download` prints it
    if name.startswith(("http://", "https://")):
        server = CheckServer(name, "image checker", settings.checker_api_key)
        return FoundChecker(server, run_call(server.revision()))
    folder = local_folder(name, "image checker")
    if folder is not None:
        check_part(folder)
        return FoundChecker(folder, folder_revision("vlm", folder))
    say_licence(name)
    folder = download(name)
    check_part(folder)
    return FoundChecker(folder, folder.name)


def checked(info: JudgeInfo, revision: str, flops: int) -> JudgeInfo:
    """The info of a judge whose images are checked: other winners, so another revision, for more work.

    Args:
        info: the judge's info.
        revision: the checker's revision.
        flops: operations of one check.
    """
    pinned = f"{info.revision.revision}{CHECKED}{revision}"
    return info.model_copy(
        update={
            "revision": info.revision.model_copy(update={"revision": pinned}),
            "tflops_per_forward": info.tflops_per_forward + flops / TERA,
        }
    )
