"""The scaling curve against what it must be, and a pool that goes on where it was cut off."""

import itertools
import json
import pickle
import runpy
import signal
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from bestofn.evaluation.curve import auc, chosen, curve, share_of_the_way, sizes
from bestofn.evaluation.drawing import fill
from bestofn.evaluation.geneval_export import with_little_choice
from bestofn.evaluation.pool import CHUNK, Chunk, Pool, SampleRequest, SamplingConfig, Source
from bestofn.evaluation.regret import preset, regret
from bestofn.evaluation.replay import replay
from bestofn.evaluation.strategies import Strategy
from bestofn.evaluation.tasks import Task, benchmark
from bestofn.evaluation.tasks import read as read_tasks
from bestofn.judge.loader import JudgeFolderError
from bestofn.models.errors import ModelError, PromptTooLong
from bestofn.models.random_init.checkpoint import make_random_checkpoint
from bestofn.models.sampling import generate
from bestofn.service.client.errors import ClientClosed
from bestofn.service.core.budget import frontier
from bestofn.service.core.errors import BestOfNError, JudgeAway, SetupError
from bestofn.service.core.jobs import Draft
from tests.judge.tiny_models import make_clip

SCALING = Path(__file__).parents[2] / "evaluation" / "results" / "scaling"

CORRECT = arrays(np.float64, (6, 8), elements=st.sampled_from([0.0, 1.0]))
TAGS = ["a", "a", "a", "b", "b", "b"]


@given(CORRECT, st.integers(0, 99))
def test_oracle_bounds_every_judge_and_never_falls_with_n(correct, seed):
    margin = np.random.default_rng(seed).normal(size=correct.shape)
    points = curve(correct, margin, TAGS)
    assert [point.n for point in points] == [1, 2, 4, 8]
    assert points[0].judge == pytest.approx(points[0].oracle) == pytest.approx(points[0].random)
    for before, after in itertools.pairwise(points):
        assert after.oracle >= before.oracle - 1e-12
    for point in points:
        assert max(point.judge, point.random) <= point.oracle + 1e-12


@given(CORRECT)
def test_a_perfect_judge_goes_all_the_way_and_a_perverse_one_backwards(correct):
    perfect, perverse = curve(correct, correct, TAGS), curve(correct, -correct, TAGS)
    assert [point.judge for point in perfect] == [point.oracle for point in perfect]
    assert perverse[-1].judge <= perverse[0].judge
    if perfect[-1].oracle > perfect[0].oracle:
        assert share_of_the_way(perfect) == pytest.approx(1)


def test_blocks_are_disjoint_and_ties_go_to_the_earlier():
    score = np.array([[1.0, 1.0, 0.0, 2.0, np.nan, 0.0]])
    assert chosen(score, 2).tolist() == [[0, 3, 5]]
    assert chosen(score, 4).tolist() == [[3]]
    assert sizes(32) == [1, 2, 4, 8, 16, 32]


def test_auc_counts_within_prompts_only():
    correct = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert auc(correct, np.array([[2.0, 1.0], [5.0, 6.0], [0.0, 0.0]])) == 1.0
    assert auc(correct, np.array([[2.0, 2.0], [6.0, 5.0], [0.0, 0.0]])) == 0.25
    assert auc(correct, np.array([[np.nan, 2.0], [np.nan, np.nan], [0.0, 0.0]])) == 0.5


def test_a_plan_regrets_nothing_where_prompts_are_alike_and_much_where_halves_differ():
    cost = np.array([[1.0] * 8, [2.0] * 8, [4.0] * 8])
    alike = np.array([[0.2] * 8, [0.6] * 8, [0.9] * 8])
    assert regret(alike, cost, ["a"] * 8).mean == 0
    odd = np.arange(8) % 2
    differ = np.array([[0.0] * 8, odd, 1.0 - odd])  # what is best on one half is worst on the other
    told = regret(differ, cost, ["a"] * 8)
    assert 0.2 < told.mean <= 1
    assert told.by_budget[0][1] == 0  # only one strategy is as cheap


def test_a_preset_is_the_cheapest_that_reaches_its_mark_and_luck_shows_on_the_other_half():
    cost = np.array([[1.0] * 40, [2.0] * 40, [4.0] * 40])
    clear = np.array([[0.5] * 40, [0.01] * 40, [0.0] * 40])
    told = preset(clear, cost, ["a"] * 20 + ["b"] * 20, 0.02)
    assert (told.cost, told.loss) == pytest.approx((2.0, 0.01))
    luck = np.random.default_rng(0).permuted(np.tile([-1.0, 1.0], (200, 20)), axis=1)  # none loses anything, over all
    told = preset(np.vstack([luck, np.zeros((1, 40))]), np.ones((201, 40)), ["a"] * 40, 0.02)
    assert told.loss > 0  # what was chosen for its luck


def test_a_strategy_is_what_it_prints():
    for line in (
        "n=32",
        "n=4 steps=24",
        "n=16 draft=4:0.25",
        "n=16 preview=4:0.125",
        "n=64 stop=0.97:16",
        "n=64 stop=0.9:64:8",
    ):
        assert str(Strategy.parse(line)) == line
    for line in ("", "n=0", "n=4 drift=2", "n=16 draft=four", "n=16 draft=2:0.5 preview=2:0.5"):
        with pytest.raises(ValueError, match="no strategy"):
            Strategy.parse(line)


class KnownPool(Pool):
    """A pool whose candidates are given."""

    def __init__(self, configs: dict[SamplingConfig, tuple[np.ndarray, np.ndarray]]) -> None:
        self.source, self._tables, self.yes_above = None, {}, 0.0
        self.chunks = {
            config: {
                row: {
                    start: Chunk(
                        *(values[row, start : start + CHUNK].tolist() for values in (correct, margin, 0 * margin))
                    )
                    for start in range(0, correct.shape[1], CHUNK)
                }
                for row in range(len(correct))
            }
            for config, (correct, margin) in configs.items()
        }


@given(arrays(np.float64, (3, 64), elements=st.floats(-9, 9), unique=True), st.sampled_from([1, 4, 16, 32]))
def test_replays_of_plain_jobs_are_the_curve_and_drafts_that_keep_all_change_nothing(margin, N):
    correct = (margin > 2).astype(float)
    rng = np.random.default_rng(0)
    pool = KnownPool(
        {SamplingConfig(12): (correct, margin), SamplingConfig(4): (correct, rng.permuted(margin, axis=1))}
    )
    plain = replay(Strategy(N), pool, 12, [0, 1, 2])
    assert (plain.correct == np.take_along_axis(correct, chosen(margin, N), 1)).all()
    assert (plain.solved == N).all()
    assert plain.kept.all()
    drafted = replay(Strategy(N, draft=Draft(num_inference_steps=4, keep=1.0)), pool, 12, [0, 1, 2])
    assert (drafted.correct == plain.correct).all()
    assert (drafted.drafted == N).all()
    assert replay(Strategy(128), pool, 12, [0, 1, 2]) is None


def test_a_pool_goes_on_where_it_was_cut_off_and_grows(tmp_path):
    from bestofn.judge.judge import EMBEDDED
    from bestofn.models.checkpoint import Checkpoint

    model = Checkpoint.resolve("shapes")
    source = Source(str(model.path), model.revision, str(EMBEDDED), "j", benchmark())
    path, seen = tmp_path / "pool.jsonl", []
    requests = [SampleRequest(SamplingConfig(2), CHUNK, [0, 200])]
    twice = [*requests, SampleRequest(SamplingConfig(2), 1, [0])]  # as the curve and a strategy want the same
    fill(Pool(path, source), twice, 2, lambda done, wanted: seen.append((done, wanted)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("\n", 0, -1) + 40])
    more = [*requests, SampleRequest(SamplingConfig(2, 1), CHUNK, [0])]
    pool, seen = Pool(path, source), []
    assert [key.config for key in pool.missing(more)] == [
        SamplingConfig(2),
        SamplingConfig(2, 1),
    ]  # what was cut off, and what is new
    fill(pool, more, 1, lambda done, wanted: seen.append((done, wanted)))  # in this process, with the same bits
    assert path.read_text().startswith(whole)
    drawn = Pool(path, source).samples(SamplingConfig(2), CHUNK)
    assert drawn.numbers == [0, 200]
    assert drawn.margin.shape == drawn.correct.shape == (2, CHUNK)
    assert np.isin(drawn.correct, (0, 1)).all()
    with pytest.raises(ValueError, match="choose another --out"):
        Pool(path, replace(source, judge_revision="k"))


def test_pool_with_kept_latents_is_filled_for_another_judge_without_drawing(tmp_path):
    from bestofn.judge.judge import EMBEDDED
    from bestofn.models.checkpoint import Checkpoint

    model, before = Checkpoint.resolve("shapes"), SCALING.parent / "judge" / "before"
    source = Source(str(model.path), model.revision, str(EMBEDDED), "j", benchmark(), latents=tmp_path / "latents")
    requests = [SampleRequest(SamplingConfig(2), CHUNK, [0])]
    pool = Pool(tmp_path / "pool.jsonl", source)
    fill(pool, requests, 1, lambda *_: None)
    (kept,) = (tmp_path / "latents").rglob("*.safetensors")
    drawn_at = kept.stat().st_mtime_ns
    other = Pool(tmp_path / "other.jsonl", replace(source, judge=str(before), judge_revision="k"))
    fill(other, requests, 1, lambda *_: None)
    first, second = (one.samples(SamplingConfig(2), CHUNK) for one in (pool, other))
    assert kept.stat().st_mtime_ns == drawn_at
    assert (first.correct == second.correct).all()
    assert (first.margin != second.margin).any()
    kept.write_bytes(b"")  # what is kept is read
    with pytest.raises(SetupError, match="delete it, and it is drawn again"):
        fill(Pool(tmp_path / "third.jsonl", source), requests, 1, lambda *_: None)


def test_replay_takes_a_pool_of_either_precision_and_drawing_does_not(tmp_path):
    from bestofn.evaluation.run import EvaluationRun
    from bestofn.judge.judge import EMBEDDED
    from bestofn.judge.loader import revision
    from bestofn.models.checkpoint import Checkpoint

    model, judge = Checkpoint.resolve("shapes").revision, revision(EMBEDDED)
    source = Source("", f"{model}+bfloat16", "", judge, benchmark())
    (tmp_path / "pool.jsonl").write_text(json.dumps(source.identity) + "\n")
    read = EvaluationRun.of("shapes", "shapes", "cpu", benchmark(), tmp_path, replay=True)
    assert read.pool.source.identity == source.identity
    with pytest.raises(ValueError, match="choose another --out"):
        EvaluationRun.of("shapes", "shapes", "cpu", benchmark(), tmp_path)


def test_ctrl_c_ends_a_pool_with_what_is_drawn_and_keeps_its_lines(tmp_path):
    from bestofn.judge.judge import EMBEDDED
    from bestofn.models.checkpoint import EMBEDDED as GENERATORS

    source = Source(str(GENERATORS["shapes"]), "m", str(EMBEDDED), "j", benchmark())
    pool, requests = Pool(tmp_path / "pool.jsonl", source), [SampleRequest(SamplingConfig(1), 100 * CHUNK, range(240))]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            fill(pool, requests, 2, lambda done, wanted: signal.raise_signal(signal.SIGINT) if done else None)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(Pool(pool.path, source).missing(requests)) == 240 * 100 - 1
    assert not active_children()


def test_the_published_figures_are_what_the_pool_says():
    from bestofn.evaluation import cost, report
    from bestofn.judge.calibration import FILE, read
    from bestofn.judge.judge import EMBEDDED, Judge
    from bestofn.models.generator import Generator

    published = json.loads((SCALING / "scaling.json").read_text())
    assert (SCALING / "scaling.md").read_text() == report.tables(published)
    strategies = [Strategy.parse(one["strategy"]) for one in published["strategies"]]
    prices = {"tflops": cost.counted(Generator.load("shapes"), Judge.load())}
    calibration = read(EMBEDDED / FILE) if (EMBEDDED / FILE).is_file() else None
    question = report.ReportRequest(range(240), strategies, 12, prices, calibration, published["machine"])
    figures = json.loads(json.dumps(report.summary(Pool.of_benchmark(SCALING / "pool.jsonl"), question)))
    for one in (published, figures):
        one.pop("prices")
        for strategy in one["strategies"]:
            strategy.pop("seconds", None)  # the only thing that was measured on a machine
    assert figures == published


@pytest.mark.parametrize(("numbers", "planned"), [(range(0, 240, 40), False), (range(0, 240, 20), True)])
def test_summary_with_one_prompt_a_category_has_no_plan(numbers, planned):
    from bestofn.evaluation import cost, report

    published = json.loads((SCALING / "scaling.json").read_text())
    pool = Pool.of_benchmark(SCALING / "pool.jsonl")
    prices = {unit: cost.Price(**price) for unit, price in published["prices"].items()}
    question = report.ReportRequest(numbers, [Strategy(N) for N in (4, 8)], 12, prices, None, "")
    figures = report.summary(pool, question)
    assert (figures["planner"] is not None, list(figures["presets"])) == (planned, ["8"] * planned)
    assert "nan" not in report.tables(figures)


def test_the_page_on_depths_says_what_its_pools_say():
    page = (SCALING.parent / "compute" / "README.md").read_text().splitlines()
    for line in runpy.run_path(str(SCALING.parent / "compute" / "draw.py"))["tables"]():
        assert line in page


def test_winners_of_a_file_are_laid_out_for_their_evaluators_and_scored_by_another_judge(tmp_path):
    from bestofn.evaluation.geneval_export import table
    from bestofn.evaluation.run import EvaluationRun
    from bestofn.judge.judge import Judge

    lines = [
        {
            "tag": "colors",
            "include": [{"class": "ring", "count": 1, "color": "red"}],
            "prompt": "a photo of a red ring",
        },
        {"prompt": "two stars", "atom_count": 2, "vqa_list": [["How many stars?", "two"]], "skills": ["count"]},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    tasks = read_tasks(file)
    assert [task.tag for task in tasks] == ["colors", "2 atoms"]
    before = SCALING.parent / "judge" / "before"
    evaluation = EvaluationRun.of("shapes", "shapes", "cpu", tasks, tmp_path, scored_by=str(before))
    source = evaluation.pool.source
    config, rng = SamplingConfig(12), np.random.default_rng(0)
    evaluation.pool.chunks[config] = {
        number: {0: Chunk([], rng.normal(size=CHUNK).tolist(), [0.0] * CHUNK)} for number in (0, 1)
    }
    figures = evaluation.winners([0, 1], [Strategy(4)], 2, tmp_path)
    for number, line in enumerate(lines):
        folder = tmp_path / "n=4" / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == line
        assert [path.name for path in sorted((folder / "samples").iterdir())] == ["0000.png", "0001.png"]
        best = int(np.argmax(evaluation.pool.chunks[config][number][0].yes[:4]))
        drawn = generate(evaluation.generator, line["prompt"], [source.tasks[number].seed + best])[0].numpy()
        assert (np.asarray(Image.open(folder / "samples" / "0000.png")) == drawn).all()
    named = json.loads((tmp_path / "n=4" / "images.json").read_text())
    assert list(named) == ["a photo of a red ring", "two stars"]
    assert figures["strategies"][0]["candidates"] == 4
    best = [tmp_path / "n=4" / f"{number:05d}" / "samples" / "0000.png" for number in (0, 1)]
    with Image.open(best[0]) as one, Image.open(best[1]) as other:
        margins = [verdict.margin for verdict in Judge.load(before).judge([one, other], list(named))]
    assert figures["strategies"][0]["scored_margin"] == pytest.approx(np.mean(margins), abs=1e-4)
    yes = np.array([evaluation.pool.chunks[config][number][0].yes for number in (0, 1)])
    assert figures["strategies"][0]["margin"] == pytest.approx(yes[:, :4].max(1).mean())  # of the same two winners
    unscored = replace(evaluation, scorer=None).winners([0, 1], [Strategy(4)], 2, tmp_path / "unscored")
    assert unscored["strategies"][0]["margin"] == pytest.approx(yes.reshape(2, 8, 4).max(2).mean())  # of all jobs
    assert f"Scored by {before}, revision " in (tmp_path / "winners.md").read_text() == table(figures)
    with Image.open(tmp_path / "winners.png") as plot:
        assert plot.width > 1000


def test_scorers_calibration_decides_which_winners_are_a_yes(tmp_path):
    from bestofn.evaluation.run import EvaluationRun
    from bestofn.judge.calibration import FILE
    from bestofn.judge.loader import flat_revision

    clip = make_clip("clip", tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("a red ring\n")
    tasks, scored = read_tasks(tmp_path / "prompts.txt"), []
    for bias in (-1000.0, 1000.0):  # all are a no, then all a yes, whatever the sign of the log-odds
        fitted = {"judge": flat_revision(clip), "temperature": 1.0, "bias": bias, "ceiling": 1.0}
        (clip / FILE).write_text(json.dumps(fitted))
        evaluation = EvaluationRun.of("shapes", "shapes", "cpu", tasks, tmp_path, scored_by=f"clip:{clip}")
        evaluation.pool.chunks[SamplingConfig(12)] = {0: {0: Chunk([], [1.0] * CHUNK, [0.0] * CHUNK)}}
        scored.append(evaluation.winners([0], [Strategy(1)], 1, tmp_path)["strategies"][0])
    assert [one["scored_yes"] for one in scored] == [0, 1]
    assert scored[0]["scored_margin"] == scored[1]["scored_margin"]


def test_yes_of_a_clip_that_chooses_is_its_calibrations_and_unknown_without_one(tmp_path):
    from bestofn.evaluation.run import EvaluationRun
    from bestofn.judge.calibration import FILE
    from bestofn.judge.loader import flat_revision

    clip, other = (make_clip("clip", tmp_path / name) for name in ("clip", "other"))
    (tmp_path / "prompts.txt").write_text("a red ring\n")
    tasks, found = read_tasks(tmp_path / "prompts.txt"), {}
    for bias in (None, -1000.0, 1000.0):
        if bias is not None:
            fitted = {"judge": flat_revision(clip), "temperature": 1.0, "bias": bias, "ceiling": 1.0}
            (clip / FILE).write_text(json.dumps(fitted))
        evaluation = EvaluationRun.of("shapes", f"clip:{clip}", "cpu", tasks, tmp_path)
        evaluation.pool.chunks[SamplingConfig(12)] = {0: {0: Chunk([], [1.0] * CHUNK, [0.0] * CHUNK)}}
        (found[bias],) = evaluation.winners([0], [Strategy.parse("n=32 stop=0.97:16")], 1, tmp_path)["strategies"]
        said = (tmp_path / "winners.md").read_text()
        assert ("has no calibration, so its yes is not known" in said) == (bias is None)
    assert [one["judged_yes"] for one in found.values()] == [None, 0, 1]
    assert [one["candidates"] for one in found.values()] == [32, 16, 4]  # gives up after 16 of which none is a yes
    evaluation = EvaluationRun.of("shapes", "shapes", "cpu", tasks, tmp_path / "scored", scored_by=f"clip:{other}")
    evaluation.pool.chunks[SamplingConfig(12)] = {0: {0: Chunk([], [1.0] * CHUNK, [0.0] * CHUNK)}}
    (scored,) = evaluation.winners([0], [Strategy(1)], 1, tmp_path / "scored")["strategies"]
    assert (scored["judged_yes"], scored["scored_yes"]) == (1, None)


@pytest.mark.parametrize(
    ("chooses", "scores"),
    [
        ("shapes", "shapes"),
        ("shapes + 0.5*clip:{clip}", "shapes"),
        ("shapes + 0.5*clip:{clip}", "clip:{clip}"),
        ("clip:{clip}", "shapes + clip:{clip}"),
        ("shapes + clip:{clip}", "shapes + 0.5*clip:{clip}"),
    ],
)
def test_judge_that_chooses_cannot_score_alone_or_in_a_mixture(tmp_path, chooses, scores):
    from bestofn.evaluation.run import EvaluationRun

    clip = make_clip("clip", tmp_path / "clip")
    judge, scorer = (name.format(clip=clip) for name in (chooses, scores))
    with pytest.raises(SetupError, match="is the judge that chooses the winners, so its score says nothing") as error:
        EvaluationRun.of("shapes", judge, "cpu", benchmark(), tmp_path, scored_by=scorer)
    assert scorer in str(error.value)


def test_read_takes_json_and_plain_lines_with_or_without_bom(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(
        '\ufeff{"prompt": "a red\u2028star", "tag": "colors"}\r\n\r\n  two hearts\n"a blue ring"\n42'.encode()
    )
    tasks = read_tasks(file)
    assert [task.prompt for task in tasks] == ["a red\u2028star", "two hearts", "a blue ring", "42"]
    assert [task.tag for task in tasks] == ["colors", "prompts", "prompts", "prompts"]
    assert [task.place for task in tasks] == [f"{file}, line {number}" for number in (1, 3, 4, 5)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"tag": "colors"}', "line 2: expected a JSON object"),
        (b'{"prompt": 3}', "line 2: expected a JSON object"),
        (b'{"prompt": "a star"', "line 2: expected a JSON object .* on one line"),
        (b"[", "line 2: expected a JSON object .* on one line"),
        (b'["a star"]', "line 2: expected a JSON object"),
        (b'{"prompt": " \\u200b"}', "line 2: the prompt is blank"),
        ("\u3164".encode(), "line 2: the prompt is blank"),
        (b'{"prompt": "\\ud800"}', "line 2: prompt holds a lone surrogate"),
        (b"a caf\xe9", "is not UTF-8 .byte 12.: save it as UTF-8"),
    ],
)
def test_read_names_the_line_that_is_no_prompt(tmp_path, line, said):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a star\n" + line + b"\n")
    with pytest.raises(ValueError, match=said):
        read_tasks(file)


def test_check_finds_prompts_too_long_for_generator_or_judge_before_any_is_drawn(tmp_path):
    from bestofn.evaluation.run import EvaluationRun

    file = tmp_path / "prompts.txt"
    lines = ["a star", "a ring " + "!" * 240, "a star " * 400]
    file.write_text("\n".join(lines))
    evaluation = EvaluationRun.of("shapes", "shapes", "cpu", read_tasks(file), tmp_path)
    evaluation.check([0])
    with pytest.raises(ValueError, match=r"prompts\.txt, line 2: .*the judge reads.*\(1 more prompts are too long\)"):
        evaluation.check([0, 1, 2])
    with pytest.raises(ValueError, match=r"prompts\.txt, line 3: the prompt has \d+ tokens"):
        evaluation.check([2])


def test_check_refuses_the_benchmark_to_a_generator_of_another_size(tmp_path):
    from bestofn.evaluation.run import EvaluationRun

    model = make_random_checkpoint("tiny", tmp_path / "tiny")
    with pytest.raises(SetupError, match=r"tiny draws 32x32, and .* measures 64x64: name prompts with --file"):
        EvaluationRun.of(str(model), "shapes", "cpu", benchmark(), tmp_path).check([0])
    (tmp_path / "prompts.txt").write_text("a star\n")
    EvaluationRun.of(str(model), "shapes", "cpu", read_tasks(tmp_path / "prompts.txt"), tmp_path).check([0])


def test_an_error_of_a_worker_process_arrives_whole(tmp_path):
    from bestofn.judge.judge import EMBEDDED
    from bestofn.models.checkpoint import EMBEDDED as GENERATORS

    source = Source(str(GENERATORS["shapes"]), "m", str(EMBEDDED), "j", (Task("a star " * 400, "t", 0),))
    pool = Pool(tmp_path / "pool.jsonl", source)
    with pytest.raises(PromptTooLong, match="the text encoder takes at most") as error:
        fill(pool, [SampleRequest(SamplingConfig(1), 1, [0])], 2, lambda done, wanted: None)
    assert error.value.tokens > error.value.limit


def test_every_error_of_ours_survives_a_pickle():
    def kinds(root):
        return [root, *(kind for child in root.__subclasses__() for kind in kinds(child))]

    for kind in [*kinds(BestOfNError), *kinds(ModelError), JudgeFolderError]:
        arguments = {PromptTooLong: (9, 8), JudgeAway: ("away", "quiet"), ClientClosed: ()}.get(kind, ("what",))
        error = kind(*arguments)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_images_close_to_n_show_no_choice():
    strategies = [Strategy(n) for n in (1, 2, 4, 8, 16, 32)]
    assert [one.num_samples for one in with_little_choice(strategies, 4)] == [2, 4, 8]
    assert with_little_choice(strategies, 1) == []


def test_the_frontier_is_that_of_the_published_figures():
    path = SCALING / "frontier.py"
    made = runpy.run_path(str(path))["frontier"](json.loads((SCALING / "scaling.json").read_text()))
    assert made == frontier()
    by_cost = [(made.strategies[key].score, effort) for effort, key in made.efforts.items()]
    assert sorted(made.efforts, key=lambda effort: made.efforts[effort]) == ["low", "medium", "high", "max"]
    assert by_cost == sorted(by_cost, key=lambda pair: pair[0])
