"""An engine with an image checker: what it refuses cannot win, and where it gives no answer the job fails."""

import base64
import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bestofn.judge.classifier import ClassifierChecker
from bestofn.judge.judge import Judge
from bestofn.judge.verdict import UNSAFE
from bestofn.models.flops import TERA
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import SentImage
from bestofn.service.core.results import ALL_UNSAFE
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.checkers import checkers
from bestofn.service.doctor.checkpoints import checkpoints
from bestofn.service.engine.checker_loader import find_checker
from bestofn.service.engine.loader import load_engine
from bestofn.service.engine.protocol import HeatFailed, HeatFinished, Judged
from bestofn.service.media.codec import decode
from bestofn.service.worker.local import local_spec, run_local
from tests.judge.tiny_models import make_clip, make_vit
from tests.service.pairwise.checks import checks

CPU = torch.device("cpu")
EXAMPLE = Path(__file__).parents[3] / "examples" / "safety_server.py"
REQUEST = GenerateRequest(
    prompt="a photo of a red star", num_samples=4, top_k=4, seed=7, num_inference_steps=2, thumbnails=True
)


def settings(checker=None, **more) -> Settings:
    return Settings(image_checker=checker, threads=1, devices="cpu", **more)


def file_of(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def drawn(engine, request=REQUEST):
    return run_local(local_spec(request, engine, Settings()), engine)


@pytest.fixture(scope="module")
def unchecked():
    return drawn(load_engine(settings()))


def test_a_classifier_whose_bias_decides_refuses_half_of_a_job(unchecked, tmp_path):
    folder = make_vit(tmp_path, (0.0, 0.0))
    checker = ClassifierChecker.load(folder, CPU, torch.float32)
    scores = {index: checker.ask([decode(data)])[0].logit() for index, data in unchecked.images.items()}
    middle = sum(sorted(scores.values())[1:3]) / 2
    make_vit(folder, (float(middle), 0.0))
    engine = load_engine(settings(str(folder)))
    assert engine.judge_info.revision.revision.split("+checked-")[0] == unchecked.result.judge.revision
    run = drawn(engine)
    safe = [image.candidate for image in unchecked.result.images if scores[image.candidate] < middle]
    assert (run.result.status, run.result.unsafe, len(safe)) == ("succeeded", 2, 2)
    assert [image.candidate for image in run.result.images] == safe
    assert run.thumbnails == {index: unchecked.thumbnails[index] for index in sorted(safe)}
    assert {c.index for c in run.result.candidates if c.verdict.answer == "unsafe"} == set(range(4)) - set(safe)
    assert "the image checker refused 2 of 4 candidates as unsafe" in run.result.warnings
    assert checker.flops() > 1e4
    check = checker.flops() / TERA
    assert run.result.usage.tflops - unchecked.result.usage.tflops == pytest.approx(4 * check, rel=1e-6)
    verdict = Judge.load().flops(engine.model_info.width, engine.model_info.height) / TERA
    assert engine.judge_info.tflops_per_forward == pytest.approx(verdict + check, rel=1e-6)
    make_vit(folder, (0.0, 99.0))
    failed = drawn(load_engine(settings(str(folder))))
    assert (failed.result.status, failed.result.error, failed.result.unsafe) == ("failed", ALL_UNSAFE, 4)
    assert (failed.images, failed.thumbnails) == ({}, {})


def test_a_server_is_a_checker_of_drafts_and_for_two_judges_too():
    def odd(body: dict[str, Any]) -> tuple[int, Any]:
        assert body.keys() == {"image"}
        return 200, {"unsafe": hashlib.sha256(base64.b64decode(body["image"])).digest()[0] % 2 == 1}

    with checks(odd) as url:
        engine = load_engine(settings(url, second_judge="shapes"))
        fields = REQUEST.model_dump(exclude_defaults=True) | {"num_samples": 8, "top_k": 8}
        both = drawn(engine, GenerateRequest.model_validate(fields | {"rule": "lower_bound"})).result
        drafts = {"num_inference_steps": 1, "keep": 0.5}
        draft = drawn(engine, GenerateRequest.model_validate(fields | {"draft": drafts, "top_k": 4}))
    assert 0 < both.unsafe < 8
    assert len(both.images) == 8 - both.unsafe
    assert [c.verdict.answer for c in sorted(both.candidates, key=lambda c: c.rank)][-both.unsafe :] == (
        ["unsafe"] * both.unsafe
    )
    refused = {c.index for c in draft.result.candidates if UNSAFE.answer in (c.verdict.answer, c.draft.answer)}
    assert refused
    shown = {c.index for c in draft.result.candidates if c.verdict.answer != "unsafe"}
    assert draft.thumbnails.keys() <= shown
    assert draft.images.keys() <= shown


def test_sent_images_are_checked_and_a_failed_check_leaves_the_other_job(make_spec):
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        with Image.open(io.BytesIO(base64.b64decode(body["image"]))) as image:
            red, _, blue = image.convert("RGB").getpixel((0, 0))
        return (400, {}) if blue else (200, {"unsafe": red == 255})

    answers = [(200, {"unsafe": False})]  # to the start-up test
    with checks(lambda body: answers.pop() if answers else answer(body)) as url:
        engine = load_engine(settings(url))
        zero = dict.fromkeys(("seed", "width", "height", "num_inference_steps", "guidance_scale"), 0)
        named = {"model": engine.model_info.revision, "judge": engine.judge_info.revision}
        events = []
        for colours in ((0, 255, 90), (0, 255)):
            colour = [(level, 0, 99 * (len(colours) == 2)) for level in colours]
            files = [file_of(Image.new("RGB", (64, 48), one)) for one in colour]
            sent = [SentImage(format="png", size=len(data)) for data in files]
            spec = make_spec(num_samples=len(files), heat_size=8, top_k=3, sent=sent, thumbnails=True, **zero, **named)
            engine.admit(replace(spec.heat(0), images=dict(enumerate(files))))
        while engine.busy:
            events += engine.tick()
    [failed] = [event for event in events if isinstance(event, HeatFailed)]
    assert (failed.job, failed.final) == (spec.id, False)
    [outcome] = [event.outcome for event in events if isinstance(event, HeatFinished)]
    assert [one.verdict.unsafe for one in outcome.candidates] == [False, True, False]
    assert outcome.images.keys() == {0, 2}
    shown = {event.candidate.index for event in events if isinstance(event, Judged) and event.thumbnail}
    assert shown == {0, 2}


@pytest.mark.parametrize("answer", [(400, {}), (200, {"unsafe": None})])
def test_a_checker_without_an_answer_fails_the_heat_and_is_never_a_pass(answer):
    answers = [(200, {"unsafe": False})]  # to the start-up test
    with checks(lambda _: answers.pop() if answers else answer) as url:
        engine = load_engine(settings(url))
        failed = drawn(engine)
    assert (failed.result.status, failed.images, failed.thumbnails) == ("failed", {}, {})
    assert failed.result.error == "the image checker gave no answer: the worker's log has the cause"


def test_a_checker_that_fails_at_the_start_is_refused(tmp_path):
    with pytest.raises(SetupError, match="start-up test: the image checker's logits are not finite"):
        load_engine(settings(str(make_vit(tmp_path, (float("nan"), 0.0)))))
    with pytest.raises(SetupError, match="nothing here"):
        load_engine(settings("nothing here"))
    with pytest.raises(SetupError, match=r"the image checker at http://127\.0\.0\.1:9/check cannot be reached"):
        load_engine(settings("http://127.0.0.1:9/check"))


def test_the_example_and_a_folder_are_seen_by_the_doctor(tmp_path):
    command = [sys.executable, str(EXAMPLE), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            url = process.stdout.readline().split()[-1]
            both = Settings(prompt_checker=url, image_checker=url)
            said = {one.what: one for one in checkers(both)}
            checker = find_checker(both).load(CPU)
            red = [checker.unsafe(row) for row in checker.ask([Image.new("RGB", (8, 8), c) for c in ("red", "blue")])]
        finally:
            process.terminate()
    assert red == [True, False]
    assert said["prompt checker"].found == f"{url} calls 'a red circle' safe"
    assert said["image checker"].state == "ok"
    away = list(checkers(Settings(prompt_checker="http://127.0.0.1:9/check")))
    assert [(one.state, one.what) for one in away] == [("fail", "prompt checker")]
    folder = settings(str(make_vit(tmp_path, (0.0, 0.0))))
    assert [one.found for one in checkers(folder)] == ["refuses nsfw"]
    found = [one for one in checkpoints(folder) if one.what == "image checker"]
    assert [one.state for one in found] == ["ok"]
    assert str(tmp_path) in found[0].found
    clip = settings(str(make_clip("clip", tmp_path / "clip")))
    (labels,) = checkers(clip)
    assert ("LABEL_1 is known as unsafe" in labels.found, labels.state) == (True, "fail")
    assert not any("before its name" in one.found for one in checkpoints(clip))
    assert [one.found for one in checkers(settings())] == ["neither prompts nor images are checked"]
