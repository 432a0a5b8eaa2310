"""The judges and the image checker of a deployment, held on one device with a generator."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import torch

from bestofn.judge.calibration import Calibration
from bestofn.judge.interface import PointwiseJudge
from bestofn.judge.judge import Judge
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import JudgeInfo
from bestofn.service.engine.any_generator import AnyGenerator
from bestofn.service.engine.checker_loader import FoundChecker, checked
from bestofn.service.engine.judge_loader import JudgeCheckpoint, calibration_of, judge_info
from bestofn.service.engine.judge_residency import JudgeResidency


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
    generator: AnyGenerator,
    *,
    shared: bool,
) -> tuple[JudgeResidency, JudgeInfo, list[bytes]]:
    """Their residency, the info of the judges, and the judges' tokenizer files."""
    files = (settings.calibration, settings.second_calibration)
    calibrations = [calibration_of(*one) for one in zip(judges, files, strict=False)]
    pairs = zip(judges, calibrations, strict=True)
    load, *seconds = [_loader(judge, device, calibration) for judge, calibration in pairs]
    second, load_checker = seconds[0] if seconds else None, partial(checker.load, device) if checker else None
    residence = JudgeResidency(load, generator, shared=shared, load_second=second, load_checker=load_checker)
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
