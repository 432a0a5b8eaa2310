"""Jobs that two judges decide: here, in turns, beside others and through the queue the same verdicts and winners."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from bestofn.judge.calibration import Calibration, bounded
from bestofn.judge.judge import EMBEDDED, Judge
from bestofn.judge.verdict import Rule
from bestofn.models.flops import TERA
from bestofn.service.core.deployments import choose_deployment, deployments_of
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.jobs import SCHEMA_VERSION, Draft, JobSpec
from bestofn.service.core.results import ranked
from bestofn.service.core.schemas import GenerateRequest, VerdictOut
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.engine.engine import Engine
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.engine.judge_loader import find_judge
from bestofn.service.engine.judge_residency import JudgeResidency
from bestofn.service.engine.loader import load_engine
from bestofn.service.engine.protocol import HeatFinished
from bestofn.service.engine.side_stream import SideStream
from bestofn.service.media.codec import decode
from bestofn.service.queue.codec import pack_heat, pack_leaders, unpack_heat, unpack_leaders
from bestofn.service.queue.keys import pair_id
from bestofn.service.worker.local import local_spec, run_local
from tests.waiting import PATIENCE, until

PROMPT = "a photo of a red star left of a blue circle"
SECOND = Calibration(2.0, 0.25, 0.9)
SHORT = {"prompt": PROMPT, "seed": 3, "num_samples": 6, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """Another judge: the shapes judge with other weights in its decoder, and a calibration of its own."""
    folder = tmp_path_factory.mktemp("judges") / "unlike"
    shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("calibration.json"))
    file = folder / "llm" / "model.safetensors"
    generator = torch.Generator().manual_seed(5)
    weights = load_file(file)
    for name in [name for name in weights if ".mlp." in name]:
        weights[name] *= 1 + 0.3 * torch.randn(weights[name].shape, generator=generator).half()
    save_file(weights, file, {"format": "pt"})
    fitted = {"temperature": SECOND.temperature, "bias": SECOND.bias, "ceiling": SECOND.ceiling}
    (folder / "calibration.json").write_text(json.dumps({"judge": find_judge(str(folder)).revision.revision, **fitted}))
    return folder


@pytest.fixture(scope="module")
def settings_of_two(unlike):
    return Settings(second_judge=str(unlike), devices="cpu", threads=1)


@pytest.fixture(scope="module")
def loaded(settings_of_two):
    return load_engine(settings_of_two)


@pytest.fixture
def spec(loaded, settings_of_two):
    def spec(id="job", **fields):
        request = GenerateRequest(**(SHORT | {"rule": "lower_bound"} | fields))
        return local_spec(request, loaded, settings_of_two).model_copy(update={"id": id})

    return spec


def candidates(engine, *specs):
    """The candidates of jobs that run together, by job, and their winners' bytes."""
    for job in specs:
        for heat in job.heats():
            engine.admit(heat)
    found = {}
    while engine.busy:
        for event in engine.tick():
            if isinstance(event, HeatFinished):
                found[event.job] = event.outcome.candidates, event.outcome.images
    return found


def test_a_local_job_has_both_verdicts_and_their_bound(loaded, spec, unlike):
    job = spec(top_k=6)
    run_local(spec(rule="margin"), loaded)  # now its prompt is encoded
    alone = run_local(spec(rule="margin"), loaded).result
    run = run_local(job, loaded)
    result = run.result
    assert (result.second_judge, job.second_calibration) == (find_judge(str(unlike)).revision, SECOND)
    assert "second_judge" not in result.parameters
    images = [decode(run.images[image.candidate]) for image in result.images]
    first, second = (judge.judge(images, [PROMPT] * 6) for judge in (Judge.load(), Judge.load(unlike)))
    for image, *both in zip(result.images, first, second, strict=True):
        expected = VerdictOut.of(bounded(*both, (job.calibration, SECOND)))
        assert image.verdict.bound == pytest.approx(expected.bound, abs=1e-3)
        assert image.verdict.p_yes == pytest.approx(expected.p_yes, abs=1e-3)
        assert image.verdict.second.yes_logit == pytest.approx(expected.second.yes_logit, abs=1e-3)
        assert (image.verdict.answer, image.verdict.second.answer) == (expected.answer, expected.second.answer)
    bounds = [image.verdict.bound for image in result.images]
    assert bounds == sorted(bounds, reverse=True)

    assert (alone.second_judge, alone.usage.judge_forwards, result.usage.judge_forwards) == (None, 6, 12)
    more = 6 * Judge.load(unlike).flops(job.width, job.height, PROMPT) / TERA
    assert result.usage.tflops - alone.usage.tflops == pytest.approx(more)
    assert "second" not in alone.images[0].verdict.model_dump()
    assert {image.candidate: image.verdict.yes_logit for image in alone.images}.items() <= {
        one.index: one.verdict.yes_logit for one in result.candidates
    }.items()  # who is asked beside it changes nothing of the judge's own


def test_drafts_are_for_the_first_judge_alone(loaded, spec):
    outcome, _ = candidates(loaded, spec(draft={"num_inference_steps": 2, "keep": 0.5}))["job"]
    assert [one.draft.second for one in outcome] == [None] * 6
    assert [one.verdict.second is not None for one in outcome] == [one.solved_in_full for one in outcome]
    assert sum(one.solved_in_full for one in outcome) == 3


class Late(SideStream):
    """A second queue as a GPU's: what was given to it is read in the next tick."""

    late = True


def test_lower_bound_among_other_jobs_or_a_tick_later_is_the_same(loaded, spec, unlike):
    job = spec(num_samples=4)
    alone = candidates(loaded, job)["job"]
    drafted = {"draft": {"num_inference_steps": 2, "keep": 0.5}, "seed": 40}
    others = [spec("margin", rule="margin", num_samples=4), spec("drafts", num_samples=4, **drafted)]
    assert candidates(loaded, *others, job)["job"] == alone

    workers = loaded.model_info, loaded.judge_info, loaded.tokenizer_files, loaded.sizes

    def engine(shared, side_stream=None):
        held = JudgeResidency([Judge.load, lambda: Judge.load(unlike)], loaded.generator, shared=shared)
        return Engine(loaded.generator, held, *workers, side_stream)

    assert candidates(engine(shared=False), *others, job)["job"] == alone
    late = Late(loaded.generator.device, one_queue=True)
    assert candidates(engine(shared=True, side_stream=late), job, *others)["job"] == alone


def test_the_same_judge_twice_has_the_winner_of_margin(loaded, spec):
    margin = ranked(spec(rule="margin"), candidates(loaded, spec(rule="margin"))["job"][0])
    info = loaded.judge_info.model_copy(update={"second": loaded.judge_info.model_copy(update={"second": None})})
    held = JudgeResidency([Judge.load, Judge.load], loaded.generator, shared=True)
    twice = Engine(loaded.generator, held, loaded.model_info, info, loaded.tokenizer_files, loaded.sizes)
    job = local_spec(GenerateRequest(**SHORT, rule="lower_bound"), twice, Settings())
    assert "then ranks as margin does" in job.warnings[0]
    outcome, _ = candidates(twice, job)[job.id]
    assert [one.index for one in ranked(job, outcome)] == [one.index for one in margin]
    assert all(one.verdict.second == replace(one.verdict, second=None, bound=None) for one in outcome)


WORKER = """
import sys
from bestofn.service.engine.loader import load_engine
from bestofn.service.core.settings import Settings
from bestofn.service.worker.worker import run_worker
settings = Settings.model_validate_json(sys.argv[1])
sys.exit(run_worker(settings, lambda: load_engine(settings)))
"""


@pytest.mark.parametrize("server_program", ["valkey"], indirect=True)
def test_a_served_job_is_the_local_one(settings, unlike, serving, loaded, spec):
    settings = settings.model_copy(
        update={"second_judge": str(unlike), "devices": "cpu", "threads": 1, "lease_seconds": PATIENCE}
    )
    program = [sys.executable, "-P", "-c", WORKER, settings.model_dump_json()]
    worker = subprocess.Popen(program, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        with serving(settings) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as client:
            until(lambda: client.get("/readyz").is_success)
            request = SHORT | {"num_samples": 16, "rule": "lower_bound", "stop": {"confidence": 0.999, "patience": 8}}
            served = client.post("/generate", json=request).raise_for_status().json()
            events = client.get(f"/jobs/{served['id']}/events").text
            plain = client.post("/generate", json=SHORT).raise_for_status().json()
            workers = client.get("/status").json()["workers"]
    finally:
        worker.terminate()
        worker.wait(PATIENCE)
    local = run_local(spec(**request), loaded).result.model_dump(mode="json")
    for field in ("candidates", "bracket", "stopped", "confidence", "calibrated", "judge", "second_judge"):
        assert (
            served[field] == [one | {"thumbnail": None} for one in local[field]]
            if field == "candidates"
            else served[field] == local[field]
        )
    assert served["images"][0]["verdict"] == local["images"][0]["verdict"]
    assert served["confidence"] == pytest.approx(served["images"][0]["verdict"]["p_yes"])
    assert '"bound":' in events.partition("event: result")[0]
    assert (plain["second_judge"], "second" in plain["images"][0]["verdict"]) == (None, False)
    assert [one["second_judge"]["name"] for one in workers] == [str(unlike)]


def test_without_a_second_judge_the_rule_is_refused(served):
    refused = httpx.post(f"{served.url}/generate", json={"prompt": "a star", "rule": "lower_bound"}, timeout=PATIENCE)
    assert (refused.status_code, refused.json()["field"]) == (422, "rule")
    assert "start workers with BESTOFN_SECOND_JUDGE" in refused.json()["detail"]


def info_of(engine, worker, started_at):
    return WorkerInfo(
        worker=worker, host="here", pid=1, device="cpu", capacity=4, model=engine.model_info, judge=engine.judge_info,
        started_at=started_at,
    )  # fmt: skip


def test_a_job_goes_to_workers_that_hold_what_it_needs():
    one, two = FakeEngine(), FakeEngine(second_judge=True)
    live = deployments_of([info_of(two, "two", 1.0), info_of(one, "one", 2.0)])
    assert [choose_deployment(live, [], None, None, rule).judge.second is not None for rule in Rule] == [
        False,
        False,
        True,
    ]
    assert pair_id(SCHEMA_VERSION, *info_of(one, "one", 0.0).revisions) != pair_id(
        SCHEMA_VERSION, *info_of(two, "two", 0.0).revisions
    )
    with pytest.raises(InvalidRequest, match="no worker of model fake with judge fake-judge has one"):
        choose_deployment(deployments_of([info_of(one, "one", 2.0)]), live, None, None, Rule.LOWER_BOUND)
    finals = info_of(one, "one", 2.0).model_copy(update={"pairwise_judge": "looker"})
    with pytest.raises(InvalidRequest, match="has one and a pairwise judge: start"):
        choose_deployment(
            deployments_of([info_of(two, "two", 1.0), finals]), [], None, None, Rule.LOWER_BOUND, finals=True
        )
    away = choose_deployment([], live, None, None, Rule.LOWER_BOUND)  # whose worker is waited for
    assert away.judge.second == two.judge_info.second


@pytest.mark.parametrize("draft", [None, Draft(num_inference_steps=1, keep=0.5)], ids=["full", "drafts"])
def test_records_keep_both_verdicts_and_old_ones_are_read(make_spec, draft):
    engine = FakeEngine(slots=16, second_judge=True)
    job = make_spec(rule="lower_bound", draft=draft, second_judge=engine.judge_info.second.revision, calibration=SECOND)
    assert JobSpec.model_validate_json(job.model_dump_json()) == job
    engine.admit(job.heat(0))
    outcome = next(e.outcome for _ in range(9) for e in engine.tick() if isinstance(e, HeatFinished))
    assert outcome.usage.judge_forwards == 2 * job.heat(0).promoted + (job.heat(0).count if draft else 0)
    assert unpack_heat(job, 0, pack_heat(outcome)).candidates == outcome.candidates
    best = ranked(job, outcome.candidates)[:1]
    assert unpack_leaders(job, pack_leaders(best))[0].verdict == best[0].verdict

    old = make_spec().model_dump(mode="json", exclude={"second_judge", "second_calibration"})
    assert JobSpec.model_validate(old).revisions == (engine.model_info.revision, engine.judge_info.revision, None)
