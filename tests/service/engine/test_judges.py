"""An engine whose judge is not NVILA: jobs, sent images, rank and what the worker announces."""

import json

import pytest
import torch
from PIL import Image
from transformers.utils import logging
from typer.testing import CliRunner

from bestofn.cli.main import program
from bestofn.judge.calibration import FILE
from bestofn.judge.mixture import mixed
from bestofn.models.generator import Generator
from bestofn.service.core.errors import SetupError
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.checkpoints import checkpoints
from bestofn.service.engine.judge_loader import calibration_of, find_judge, yes_above
from bestofn.service.engine.judge_residency import hold_judges
from bestofn.service.engine.loader import load_engine
from bestofn.service.media.codec import decode
from bestofn.service.worker.local import local_spec, run_local
from tests.judge.tiny_models import make_clip, make_vlm
from tests.service.pairwise.checks import checks, redness

PROMPT = "a photo of a red star"
CPU = torch.device("cpu")


def random_judge(kind, root, *, passes):
    """The name of the first random model that passes its start-up test, or fails it; one of two does."""
    logging.disable_progress_bar()
    for seed in range(20):
        folder = root / f"{kind}-{seed}"
        name = f"{kind}:{make_vlm('internvl', folder, seed) if kind == 'vlm' else make_clip('clip', folder, seed)}"
        try:
            find_judge(name).load(CPU)
        except SetupError:
            if not passes:
                return name
        else:
            if passes:
                return name
    raise AssertionError("none of 20")


@pytest.fixture(scope="module", params=["vlm", "clip"])
def name(request, tmp_path_factory):
    name = random_judge(request.param, tmp_path_factory.mktemp("judges"), passes=True)
    if request.param == "clip":
        found = find_judge(name)
        fitted = {"judge": found.revision.revision, "temperature": 2.0, "bias": -1.0, "ceiling": 0.9}
        found.file.write_text(json.dumps(fitted))
    return name


@pytest.fixture(scope="module")
def engine(name):
    return load_engine(Settings(judge=name, threads=2, devices="cpu"))


def test_a_job_is_judged_by_it(name, engine):
    info = engine.judge_info
    checkpoint = find_judge(name)
    judge = checkpoint.load(CPU)
    assert info.revision == checkpoint.revision
    assert info.revision.name == name
    assert info.tflops_per_forward == judge.flops(64, 64) / 1e12 > 0
    assert (info.calibration is not None) == name.startswith("clip:")
    assert (info.prompt_limit, len(engine.tokenizer_files)) == (None, 1)
    spec = local_spec(GenerateRequest(prompt=PROMPT, num_samples=5, top_k=5, num_inference_steps=2), engine, Settings())
    run = run_local(spec, engine)
    verdicts = judge.judge([decode(run.images[i]) for i in range(5)], [PROMPT] * 5)
    assert run.result.usage.judge_forwards == 5
    for image in run.result.images:
        expected = verdicts[image.candidate]
        assert image.verdict.yes_logit == pytest.approx(expected.yes_logit, abs=1e-4)
        assert image.verdict.no_logit == pytest.approx(expected.no_logit, abs=1e-4)


def test_a_judge_that_fails_its_start_up_test_is_refused(tmp_path):
    name = random_judge("vlm", tmp_path, passes=False)
    with pytest.raises(SetupError, match=r"start-up test: a red circle gets .*`bestofn models inspect` shows"):
        load_engine(Settings(judge=name, threads=1, devices="cpu"))


def test_rank_uses_it(name, tmp_path):
    files = []
    for colour, size in (("red", (64, 64)), ("blue", (40, 64))):
        files.append(str(tmp_path / f"{colour}.png"))
        Image.new("RGB", size, colour).save(files[-1])
    done = CliRunner().invoke(program, ["rank", PROMPT, *files, "--judge", name, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["judge"]["name"] == name
    margins = [one["verdict"]["yes_logit"] - one["verdict"]["no_logit"] for one in report["images"]]
    assert report["images"][0]["rank"] == (1 if margins[0] >= margins[1] else 2)


def test_a_mixture_is_a_judge_too(name, tmp_path):
    mixture = f"shapes + 0.5*{name}"
    found = find_judge(mixture)
    assert found.revision.name == f"1*shapes + 0.5*{name}"
    assert found.revision != find_judge(f"shapes + 0.25*{name}").revision
    alone = [find_judge(one) for one in ("shapes", name)]
    assert found.weight_bytes(CPU) == sum(one.weight_bytes(CPU) for one in alone)
    engine = load_engine(Settings(judge=mixture, threads=1, devices="cpu"))
    spec = local_spec(GenerateRequest(prompt=PROMPT, num_samples=3, top_k=3, num_inference_steps=2), engine, Settings())
    run = run_local(spec, engine)
    for image in run.result.images:
        shown = [decode(run.images[image.candidate])]
        verdicts = [one.load(CPU).judge(shown, [PROMPT])[0] for one in alone]
        expected = mixed(verdicts, (1, 0.5), [calibration_of(one, None) for one in alone])
        assert image.verdict.yes_logit == pytest.approx(expected.yes_logit, abs=1e-3)
    judges = [one.found for one in checkpoints(Settings(judge=mixture)) if one.what == "judge"]
    assert [alone[i].revision.revision in judges[i] for i in (0, 1)] == [True, True]


def test_log_odds_of_a_clip_are_a_yes_by_its_calibration_alone(tmp_path):
    clip, siglip = (f"clip:{make_clip(kind, tmp_path / kind)}" for kind in ("clip", "siglip"))
    asked = ("shapes", siglip, clip, f"shapes + {clip}")
    assert [yes_above(find_judge(name)) for name in asked] == [0, 0, None, None]
    fitted = {"judge": find_judge(clip).revision.revision, "temperature": 2.0, "bias": -3.0, "ceiling": 1.0}
    (tmp_path / "clip" / FILE).write_text(json.dumps(fitted))
    assert [yes_above(find_judge(name)) for name in asked] == [0, 0, 6, 0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shapes + ", "judge 'shapes + ': '' is not a part of a mixture: write A + 0.5*B, with weights above 0"),
        ("shapes +", "judge 'shapes +': '' is not a part of a mixture: write A"),
        (" + ", "judge ' + ': '' is not a part of a mixture: write A"),
        ("shapes + 0*clip:x", "'0*clip:x' is not a part of a mixture: write A"),
        ("-1*clip:x + shapes", "'-1*clip:x' is not a part of a mixture: write A"),
        ("1.2.3*clip:x + shapes", "'1.2.3*clip:x' is not a part of a mixture: write A"),
        ("2* + shapes", "'2*' is not a part of a mixture: write A"),
        ("1e999*clip:x + shapes", "'1e999*clip:x' is not a part of a mixture: write A"),
        ("2*shapes", "judge '2*shapes': a single judge has no weight: leave out 2*"),
        ("2 * shapes", "a single judge has no weight: leave out 2 *"),
        ("-1*shapes", "'-1*shapes' is not a part of a mixture: write A"),
    ],
)
def test_a_mixture_that_is_none_is_an_error_with_its_part_and_the_form(name, said):
    with pytest.raises(SetupError) as caught:
        load_engine(Settings(judge=name, threads=1, devices="cpu"))
    assert said in caught.value.detail


def test_small_weights_and_spaces_are_read_back_from_a_mixtures_name():
    found = find_judge("0.00001 * shapes + 0.123456789*shapes")
    assert found.revision.name == "1e-05*shapes + 0.123456789*shapes"
    assert find_judge(found.revision.name).revision == found.revision
    assert found.weight_bytes(CPU) == 2 * find_judge("shapes").weight_bytes(CPU) > 0
    assert found.load(CPU).judge([Image.new("RGB", (64, 64), "red")], [PROMPT])


def test_a_judge_that_is_read_again_after_an_offload_is_not_tested_again():
    scored = []

    def answer(body):
        scored.append(body["prompt"])
        return 200, {"reward": redness(body)}

    with checks(answer) as url:
        judges = [find_judge(url)]
        generator = Generator.load("shapes")
        residence, *_ = hold_judges(judges, None, Settings(), CPU, generator, shared=False)
        tested = len(scored)
        residence.get()
        residence.offload()
        residence.get()
    assert (tested, len(scored)) == (2, 2)
