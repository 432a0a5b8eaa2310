"""A job in this process: the image that plain diffusers makes, progress, Ctrl-C, and refusals."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline

from bestofn.models.checkpoint import EMBEDDED
from bestofn.models.random_init.checkpoint import make_random_checkpoint
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.jobs import JobStatus
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FAILS, FakeEngine
from bestofn.service.engine.loader import load_engine
from bestofn.service.media.codec import decode
from bestofn.service.worker.local import local_spec, run_local

JUDGE = Path(__file__).parents[2] / "fixtures" / "vila" / "checkpoint"
PROMPT = "a photo of a red star left of a blue circle"
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def request(**fields):
    return GenerateRequest(**({"prompt": PROMPT, "num_samples": 4, "seed": 3} | fields))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("name", ["shapes", "tiny"])
def test_the_image_is_the_one_that_plain_diffusers_makes(name, tmp_path):
    folder = EMBEDDED.get(name)
    if folder is None:
        folder = make_random_checkpoint("tiny", tmp_path / name, 5, {"scheduler": EULER})
    judge = "shapes" if name == "shapes" else str(JUDGE)
    settings = Settings(model=name if name in EMBEDDED else str(folder), judge=judge, threads=1, devices="cpu")
    engine = load_engine(settings)
    seed = 2**53 + 17
    run = run_local(local_spec(request(num_samples=1, seed=seed), engine, settings), engine)
    assert run.result.images[0].seed == seed

    pipeline = SanaPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    calls, info = engine.generator.calls, engine.model_info
    theirs = pipeline(
        PROMPT,
        width=info.width,
        height=info.height,
        num_inference_steps=info.num_inference_steps,
        guidance_scale=info.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(seed),
        use_resolution_binning=False,
        max_sequence_length=calls.max_sequence_length,
        complex_human_instruction=list(calls.complex_human_instruction),
    ).images[0]
    apart = np.abs(np.asarray(decode(run.images[0])).astype(int) - np.asarray(theirs))
    assert (apart <= 1).mean() >= 0.999


def test_result_and_progress():
    engine, seen = FakeEngine(slots=4), []
    spec = local_spec(request(num_samples=11, top_k=3, thumbnails=True), engine, Settings())
    run = run_local(spec, engine, seen.append)
    assert run.result.status is JobStatus.SUCCEEDED
    assert [image.candidate for image in run.result.images] == list(run.images)
    assert sorted(run.thumbnails) == list(range(11))
    assert sum(len(matches) for matches in run.result.bracket) >= 10
    judged = [result.progress.judged for result in seen]
    assert judged == sorted(judged)
    last = seen[-1].progress
    assert (last.judged, last.steps) == (11, last.total_steps)
    assert last.best.index == run.result.images[0].candidate


def test_ctrl_c_cancels_and_gives_the_handler_back():
    engine, before = FakeEngine(slots=4), signal.getsignal(signal.SIGINT)
    ticks = []

    def interrupt(result):
        ticks.append(result)
        if len(ticks) == 2:
            signal.raise_signal(signal.SIGINT)

    run = run_local(local_spec(request(num_samples=64), engine, Settings()), engine, interrupt)
    assert (run.result.status, run.images, len(ticks)) == (JobStatus.CANCELED, {}, 2)
    assert not engine.busy
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failed_heat_fails_the_job_with_its_reason():
    engine = FakeEngine(slots=4)
    run = run_local(local_spec(request(prompt=f"a ring {FAILS}"), engine, Settings()), engine)
    assert run.result.status is JobStatus.FAILED
    assert run.result.error
    assert not engine.busy


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "word " * 390}, "prompt"),
        ({"width": 33}, "width"),
        ({"top_k": 5}, "top_k"),
        ({"num_samples": 2**60}, "num_samples"),
    ],
)
def test_a_request_is_checked_as_the_server_checks_it(fields, field):
    with pytest.raises(InvalidRequest) as refused:
        local_spec(request(**fields), FakeEngine(slots=4), Settings())
    assert refused.value.field == field
    assert "server" not in refused.value.detail
