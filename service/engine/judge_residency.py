"""Residency of the judges of a deployment: with the generator in one device's memory, or in turns with it (offload)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch

from bestofn.judge.calibration import Calibration
from bestofn.judge.checker import ImageChecker
from bestofn.judge.interface import PointwiseJudge
from bestofn.judge.judge import Judge
from bestofn.models.defaults import FOLDERS
from bestofn.models.sampling import LoadedGenerator
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import JudgeInfo
from bestofn.service.engine.checker_loader import FoundChecker, checked
from bestofn.service.engine.judge_loader import JudgeCheckpoint, calibration_of, judge_info
from bestofn.service.engine.microbatch import release_cache


class JudgeResidency:
    """Gives a judge, loaded when first needed: number 0, or 1 where a second one is deployed.

    If not all parts fit together, they take turns: slow, but every job runs.
    """

    def __init__(
        self,
        loads: Sequence[Callable[[], PointwiseJudge]],
        generator: LoadedGenerator,
        *,
        shared: bool,
        load_checker: Callable[[], ImageChecker] | None = None,
    ) -> None:
        """
        Args:
            loads: each reads a judge from disk.
            generator: the generator, whose parts are offloaded.
            shared: all fit into memory together.
            load_checker: reads the image checker, where there is one; it sees what the first judge sees.
        """
        self._loads = loads
        self._generator = generator
        self._judges: dict[int, PointwiseJudge] = {}
        self._load_checker = load_checker
        self._checker: ImageChecker | None = None
        self.count = len(loads)
        self.shared = shared

    def get(self, number: int = 0) -> PointwiseJudge:
        """A judge, in memory."""
        if number not in self._judges:
            if not self.shared:
                self.offload()
                for part in FOLDERS:
                    self._generator.release(part)
            self._judges[number] = self._loads[number]()
        return self._judges[number]

    def checker(self) -> ImageChecker | None:
        """The image checker, in memory with the first judge; None: none is deployed."""
        if self._checker is None and self._load_checker is not None:
            self.get()
            self._checker = self._load_checker()
        return self._checker

    def answered(self, number: int, row: Any) -> bool:
        """Whether a row of a judge, with the checker's if there is one, can be read without waiting for a server.

        A tick waits for one row of a batch at most: many calls to a slow server would look like an engine that stalls.
        """
        checker = self.checker() if number == 0 else None
        if checker is None:
            return self.get(number).answered(row)
        return self.get(number).answered(row[0]) and checker.answered(row[1])

    def offload(self) -> None:
        """Called before the generator works: drops the judges unless there is room for all."""
        if not self.shared and self._judges:
            self._judges.clear()
            self._checker = None
            release_cache()


def _loader(
    judge: JudgeCheckpoint, device: torch.device, calibration: Calibration | None
) -> Callable[[], PointwiseJudge]:
    """Reads a judge from disk; the first time with its start-up test."""
    times = count()
    return lambda: judge.load(device, calibration, tested=next(times) > 0)


def hold_judges(
    judges: Sequence[JudgeCheckpoint],
    checker: FoundChecker | None,
    settings: Settings,
    device: torch.device,
    generator: LoadedGenerator,
    *,
    shared: bool,
) -> tuple[JudgeResidency, JudgeInfo, list[bytes]]:
    """Their residency, the info of the judges, and the judges' tokenizer files."""
    files = (settings.calibration, settings.second_calibration)
    calibrations = [calibration_of(*one) for one in zip(judges, files, strict=False)]
    pairs = zip(judges, calibrations, strict=True)
    loads = [_loader(judge, device, calibration) for judge, calibration in pairs]
    load_checker = partial(checker.load, device) if checker else None
    residence = JudgeResidency(loads, generator, shared=shared, load_checker=load_checker)
    infos = [
        judge_info(residence.get(number), judge.revision, generator, calibrations[number])
        for number, judge in enumerate(judges)
    ]
    loaded = residence.checker()  # with its start-up test
    held = map(residence.get, range(len(judges)))
    tokenizers = [judge.tokenizer_json for judge in held if isinstance(judge, Judge)]
    info = infos[0].model_copy(update={"second": infos[1]}) if len(infos) > 1 else infos[0]
    if checker is not None and loaded is not None:
        info = checked(info, checker.revision, loaded.flops())
    return residence, info, tokenizers
