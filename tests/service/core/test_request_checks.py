"""From a request and cards to a job: defaults, limits and what a refusal says."""

from dataclasses import replace
from typing import Any

import pytest

from bestofn.judge.calibration import Calibration
from bestofn.service.core.budget import frontier
from bestofn.service.core.deployments import Deployment, choose_deployment, deployments_of, tflops
from bestofn.service.core.errors import InvalidRequest, Unavailable
from bestofn.service.core.jobs import Finals, JobSpec, Revision
from bestofn.service.core.planning import job_spec
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import JudgeInfo, ModelInfo, WorkerInfo

MODEL = ModelInfo(
    revision=Revision(name="shapes", revision="r1"),
    width=64,
    height=64,
    max_size=256,
    size_multiple=32,
    num_inference_steps=12,
    guidance_scale=4.0,
    token_limit=8,
    tokenizer_sha256="t1",
    known_words=("a", "photo", "of", "red", "star"),
    tflops_per_forward=0.5,
    tflops_per_decode=0.25,
)
JUDGE = JudgeInfo(revision=Revision(name="shapes", revision="j1"), tflops_per_forward=0.125)
DEPLOYMENT = Deployment(MODEL, JUDGE, (16,))
SETTINGS = Settings(max_samples=1000, max_steps=50, max_guidance=10.0, max_size=512)


def count_words(sha256: str, text: str) -> int:
    assert sha256 == "t1"
    return 1 + len(text.split())


def spec_of(deployment: Deployment = DEPLOYMENT, settings: Settings = SETTINGS, **fields: object) -> JobSpec:
    request = GenerateRequest.model_validate({"prompt": "a photo of a red star"} | fields)
    return job_spec(request, deployment, settings, job_id="j", random_seed=7, count_tokens=count_words)


def test_request_fields_left_out_come_from_the_model_info() -> None:
    spec = spec_of()
    assert (spec.width, spec.height, spec.num_inference_steps, spec.guidance_scale) == (64, 64, 12, 4.0)
    assert (spec.seed, spec.num_samples, spec.top_k, spec.format, spec.warnings) == (7, 16, 1, "png", ())
    assert (spec.model, spec.judge) == (MODEL.revision, JUDGE.revision)


def test_request_fields_at_the_limits_are_kept() -> None:
    spec = spec_of(
        num_samples=1000,
        top_k=16,
        seed=2**63 - 1000,
        width=256,
        height=32,
        num_inference_steps=50,
        guidance_scale=0,
        prompt="a photo of a red star A",
    )
    assert (spec.seed, spec.width, spec.height, spec.guidance_scale) == (2**63 - 1000, 256, 32, 0)


@pytest.mark.parametrize(
    ("guidance", "embeds", "said"),
    [
        (1.5, False, None),
        (1.0, False, "negative_prompt has no effect: guidance_scale 1 is not above 1"),
        (4.5, True, "negative_prompt has no effect: shapes reads none"),
    ],
)
def test_negative_prompt_that_is_not_read_is_warned_of_and_left_out(
    guidance: float, embeds: bool, said: str | None
) -> None:
    deployment = replace(DEPLOYMENT, model=MODEL.model_copy(update={"guidance_embeds": embeds}))
    request = GenerateRequest(prompt="a red star", negative_prompt="red", guidance_scale=guidance)
    spec = job_spec(request, deployment, SETTINGS, job_id="j", random_seed=7, count_tokens=count_words)
    assert (spec.negative_prompt, spec.warnings) == (("red", ()) if said is None else ("", (said,)))


REFUSED = {
    "blank prompt": ({"prompt": " \n"}, "prompt", "blank"),
    "prompt that shows nothing": ({"prompt": "\u200b\ufeff\u2060 \u3164\xad"}, "prompt", "blank"),
    "NUL": ({"prompt": "a\0"}, "prompt", "NUL character at position 1"),
    "lone surrogate": ({"negative_prompt": "\udfff"}, "negative_prompt", "surrogate at position 0"),
    "too many tokens": ({"prompt": "a " * 10}, "prompt", "11 tokens, but shapes reads 8; shorten it by 3"),
    "too many negative tokens": ({"negative_prompt": "a " * 8}, "negative_prompt", "9 tokens"),
    "too many samples": ({"num_samples": 1001}, "num_samples", "at most 1000"),
    "absurdly many samples": ({"num_samples": 10**500}, "num_samples", "at most 1000"),
    "more winners than samples": ({"num_samples": 2, "top_k": 3}, "top_k", "at most 2"),
    "seeds past the end": ({"seed": 2**63 - 15}, "seed", str(2**63 - 16)),
    "too many steps": ({"num_inference_steps": 51}, "num_inference_steps", "at most 50"),
    "too much guidance": ({"guidance_scale": 10.5}, "guidance_scale", "at most 10.0"),
    "no multiple": ({"width": 100}, "width", "multiple of 32 from 32 to 256 for shapes, got 100; the nearest is 96"),
    "too large": ({"height": 288}, "height", "the nearest is 256"),
    "absurdly large": ({"height": 10**500}, "height", "the nearest is 256"),
}


@pytest.mark.parametrize(("fields", "field", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_the_field_and_what_to_change(fields: dict[str, object], field: str, said: str) -> None:
    request = GenerateRequest.model_construct(
        **{
            "prompt": "a star",
            "negative_prompt": "",
            "num_samples": 16,
            "top_k": 1,
            "seed": None,
            "width": None,
            "height": None,
            "num_inference_steps": None,
            "guidance_scale": None,
        }
        | fields  # type: ignore[arg-type]
    )
    with pytest.raises(InvalidRequest) as refusal:
        job_spec(request, DEPLOYMENT, SETTINGS, job_id="j", random_seed=7, count_tokens=count_words)
    assert refusal.value.field == field
    assert said in refusal.value.detail
    assert len(refusal.value.detail) < 300


def test_words_that_were_never_learned_are_a_warning() -> None:
    (warning,) = spec_of(prompt="A photo of a dragon, red dragon").warnings
    assert warning == "prompt: shapes does not know the words dragon; it cannot draw them"
    open_vocabulary = replace(DEPLOYMENT, model=MODEL.model_copy(update={"known_words": None}))
    assert spec_of(open_vocabulary, prompt="a dragon").warnings == ()


def test_a_limit_on_the_work_says_how_many_candidates_fit() -> None:
    # 16 x (12 steps x 2 for guidance x 0.5 + 0.25 decode + 0.125 judge)
    assert tflops(spec_of(), DEPLOYMENT) == 16 * 12.375
    assert tflops(spec_of(width=128, guidance_scale=1.0), DEPLOYMENT) == 16 * (2 * (12 * 0.5 + 0.25) + 0.125)
    with pytest.raises(InvalidRequest, match="at most 8 candidates"):
        spec_of(settings=SETTINGS.model_copy(update={"max_tflops": 100.0}))
    said = "about 198 TFLOP, but this server takes jobs of at most 0.5; ask for fewer steps or a smaller image"
    with pytest.raises(InvalidRequest, match=said):
        spec_of(settings=SETTINGS.model_copy(update={"max_tflops": 0.5}))


DEEP = replace(
    DEPLOYMENT, model=MODEL.model_copy(update={"depth": 4, "layer_order": (0, 3, 1, 2), "tflops_per_layer": 0.125})
)


def test_a_depth_is_the_most_important_blocks_and_costs_less() -> None:
    spec = spec_of(DEEP, depth=3, draft={"num_inference_steps": 12, "depth": 2})
    assert spec.draft is not None
    assert (spec.depth, spec.layers, spec.draft.depth, spec.draft_layers) == (3, (0, 1, 3), 2, (0, 3))
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    # 2 promoted of 3 blocks, 16 drafts of 2, of 12 steps with guidance each; 18 verdicts
    assert tflops(spec, DEEP) == 2 * 24 * 0.375 + 16 * 24 * 0.25 + 18 * 0.375
    assert tflops(spec_of(DEEP, depth=4), DEEP) == tflops(spec_of(), DEPLOYMENT)
    for fields in ({}, {"depth": 4}, {"depth": 4, "draft": {"depth": 4}}, {"draft": {"num_inference_steps": 3}}):
        whole = spec_of(DEEP, **fields)
        assert (whole.depth, whole.layers, whole.draft_layers, whole.draft and whole.draft.depth) == (None,) * 4
    assert (DEEP.model.depths, MODEL.depths) == ([1, 2, 3, 4], [])
    assert DEEP.model.model_copy(update={"layer_order": None}).depths == [4]
    same = spec_of(DEEP, depth=2, draft={})
    assert (same.layers, same.draft_layers) == ((0, 3), (0, 3))
    planned = spec_of(DEEP, depth=2, effort="high").plan
    full = spec_of(DEEP, effort="high").plan
    assert planned is not None
    assert full is not None
    assert planned.expected_tflops < full.expected_tflops


@pytest.mark.parametrize(
    ("deployment", "fields", "field", "said"),
    [
        (DEEP, {"depth": 5}, "depth", "at most 4 (the layers of shapes), got 5"),
        (DEEP, {"draft": {"depth": 5}}, "draft.depth", "at most 4 (the layers of shapes), got 5"),
        (DEEP, {"depth": 2, "draft": {"depth": 3}}, "draft.depth", "at most 2 (the depth of a full solution), got 3"),
        (DEEP, {"depth": 2, "draft": {"depth": 4}}, "draft.depth", "at most 2"),
        (DEEP, {"draft": {"num_inference_steps": 13, "depth": 2}}, "draft.num_inference_steps", "at most the 12"),
        (DEEP, {"draft": {"num_inference_steps": 12, "depth": 4}}, "draft.num_inference_steps", "fewer than the 12"),
        (DEPLOYMENT, {"depth": 4}, "depth", "restart them"),
        (
            replace(DEEP, model=DEEP.model.model_copy(update={"layer_order": None})),
            {"depth": 3},
            "depth",
            "depth must be 4: the importance of the layers of shapes is not measured. Run `bestofn models importance`",
        ),
    ],
)
def test_a_depth_that_cannot_be_is_refused(
    deployment: Deployment, fields: dict[str, object], field: str, said: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        spec_of(deployment, **fields)
    assert refusal.value.field == field
    assert said in refusal.value.detail


def info(worker: str, model: str, revision: str, judge: str, started_at: float) -> WorkerInfo:
    return WorkerInfo(
        worker=worker,
        host="h",
        pid=1,
        device="cpu",
        capacity=8,
        model=MODEL.model_copy(update={"revision": Revision(name=model, revision=revision)}),
        judge=JUDGE.model_copy(update={"revision": Revision(name=judge, revision="j1")}),
        started_at=started_at,
    )


def test_the_newest_revision_serves_during_an_upgrade() -> None:
    workers = [info("a", "m", "old", "j", 1), info("b", "m", "new", "j", 2), info("c", "m", "new", "j", 3)]
    deployment = choose_deployment(deployments_of(workers), [], None, None)
    assert deployment.model.revision.revision == "new"
    assert deployment.capacities == (8, 8)


def test_name_with_a_revision_chooses_among_deployments_of_one_name() -> None:
    deployments = deployments_of([info("a", "m", "old", "j", 1), info("b", "m", "new", "j", 2)])
    assert choose_deployment(deployments, [], "m@old", "j@j1").model.revision.revision == "old"
    with pytest.raises(InvalidRequest, match=r"'m@other' is not deployed; choose from m$"):
        choose_deployment(deployments, [], "m@other", None)


def test_names_choose_among_what_is_deployed() -> None:
    deployments = deployments_of([info("a", "m1", "r", "j1", 1), info("b", "m2", "r", "j2", 2)])
    assert choose_deployment(deployments, [], "m1", None).judge.revision.name == "j1"
    with pytest.raises(InvalidRequest, match="several are deployed: m1, m2"):
        choose_deployment(deployments, [], None, None)
    with pytest.raises(InvalidRequest, match="'m3' is not deployed; choose from m1, m2"):
        choose_deployment(deployments, [], "m3", None)
    with pytest.raises(InvalidRequest, match="is not deployed with this model; choose from j1"):
        choose_deployment(deployments, [], "m1", "j2")
    with pytest.raises(Unavailable, match="no worker") as nobody:
        choose_deployment([], [], "m1", None)
    assert nobody.value.retry_after


def test_finals_are_for_workers_with_a_pairwise_judge() -> None:
    plain, able = info("a", "m", "1", "j", 2.0), info("b", "m", "0", "j", 1.0)
    deployments = deployments_of([plain, able.model_copy(update={"pairwise_judge": "looker"})])
    assert choose_deployment(deployments, [], None, None).model.revision.revision == "1"
    chosen = choose_deployment(deployments, [], None, None, finals=True)
    assert (chosen.model.revision.revision, chosen.pairwise_judge) == ("0", "looker")
    assert choose_deployment(deployments_of([plain]), [], None, None, finals=True).pairwise_judge is None
    with pytest.raises(InvalidRequest, match="BESTOFN_PAIRWISE_JUDGE"):
        spec_of(finals={})
    assert spec_of(replace(DEPLOYMENT, pairwise_judge="looker"), finals={}).finals == Finals(max_entrants=4, margin=1.0)


def test_jobs_wait_for_workers_that_were_there_before() -> None:
    live, gone = deployments_of([info("a", "m1", "r", "j1", 2)]), deployments_of([info("b", "m2", "r", "j2", 1)])
    assert choose_deployment(live, gone, None, None).model.revision.name == "m1"
    assert choose_deployment(live, gone, "m2", None).judge.revision.name == "j2"
    assert choose_deployment([], gone, None, None).model.revision.name == "m2"


def test_a_job_that_may_stop_takes_the_judges_calibration_along() -> None:
    calibrated = replace(DEPLOYMENT, judge=JUDGE.model_copy(update={"calibration": Calibration(2.0, 0.1, 0.9)}))
    plain, spec = spec_of(stop={}), spec_of(calibrated, stop={})
    assert plain.stop is not None
    assert spec.stop is not None
    assert (plain.calibration, plain.stop.confidence) == (None, 0.97)
    assert (spec.calibration, spec.stop.confidence) == (Calibration(2.0, 0.1, 0.9), pytest.approx(0.97 * 0.9))
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    asked = spec_of(calibrated, num_samples=100, stop={"confidence": 0.95, "patience": 8})
    assert asked.stop is not None
    assert (asked.stop.confidence, asked.stop.patience, asked.heat_size) == (0.95, 8, 16)
    assert "0.95 is never reached" in asked.warnings[0]
    assert spec.warnings == spec_of(calibrated).warnings == ()
    assert spec_of(calibrated).calibration is None


@pytest.mark.parametrize("effort", ["low", "medium", "high", "max"])
def test_an_effort_is_a_measured_strategy(effort: str) -> None:
    measured = frontier().strategies[frontier().efforts[effort]]
    spec = spec_of(effort=effort)
    assert spec.plan is not None
    assert (spec.num_samples, spec.stop, spec.plan.score_on_shapes) == (
        measured.num_samples,
        measured.stop,
        measured.score,
    )
    assert (spec.draft is None) is (measured.keep is None)
    assert spec.warnings == ()
    assert tflops(spec, DEPLOYMENT) == pytest.approx(spec.plan.at_most_tflops, rel=0.02)
    elsewhere = replace(
        DEPLOYMENT,
        model=DEPLOYMENT.model.model_copy(
            update={"revision": DEPLOYMENT.judge.revision.model_copy(update={"name": "x"})}
        ),
    )
    assert "measurements on shapes" in spec_of(elsewhere, effort=effort).warnings[0]


def test_more_effort_costs_more_and_is_right_more_often() -> None:
    plans = [spec_of(effort=effort).plan for effort in ("low", "medium", "high", "max")]
    assert [plan.expected_tflops for plan in plans] == sorted(plan.expected_tflops for plan in plans)
    assert [plan.score_on_shapes for plan in plans] == sorted(plan.score_on_shapes for plan in plans)


def test_seconds_are_those_of_the_live_workers() -> None:
    fast = replace(DEPLOYMENT, tflops_per_second=10.0)
    spec = spec_of(fast, budget={"seconds": 20.0})
    assert spec.plan == spec_of(budget={"tflops": 200.0}).plan
    assert spec.plan is not None
    assert spec.plan.expected_tflops <= 200.0


CHOICES_REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "effort with N": ({"effort": "low", "num_samples": 4}, "effort", "chooses num_samples; leave one of them out"),
    "budget with stop": ({"budget": {"tflops": 9.0}, "stop": {}}, "budget", "chooses stop"),
    "both": ({"effort": "low", "budget": {"tflops": 9.0}}, "budget", "leave one out"),
    "an empty budget": ({"budget": {}}, "budget", '{"tflops": X}'),
    "two budgets": ({"budget": {"tflops": 9.0, "seconds": 2.0}}, "budget", '{"seconds": X}'),
    "too little": ({"budget": {"tflops": 0.1}}, "budget", "one candidate takes about 12.4"),
    "an unknown speed": ({"budget": {"seconds": 1.0}}, "budget.seconds", "no worker has finished a heat yet"),
}


@pytest.mark.parametrize("case", CHOICES_REFUSED)
def test_a_choice_that_cannot_be_made_names_the_field(case: str) -> None:
    fields, field, words = CHOICES_REFUSED[case]
    with pytest.raises(InvalidRequest) as caught:
        spec_of(DEPLOYMENT, SETTINGS, **fields)
    assert caught.value.field == field
    assert words in str(caught.value)
