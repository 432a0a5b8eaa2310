"""A score server that gives no verdict on some images: what evaluations and fits keep and say of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from bestofn.cli.main import program
from bestofn.evaluation.pool import CHUNK, Chunk, ChunkKey, Pool, SampleRequest, SamplingConfig, Source
from bestofn.evaluation.run import EvaluationRun
from bestofn.evaluation.strategies import Strategy
from bestofn.evaluation.tasks import Task
from tests.service.pairwise.checks import checks, redness

STAR, RING = "a photo of a red star", "a photo of a blue ring"


@dataclass
class Scores:
    """A score server's state: its address, and the prompts that get no verdict."""

    url: str = ""
    silent: set[str] = field(default_factory=set)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, float]]:
        return 200, {} if body["prompt"] in self.silent else {"reward": redness(body)}


@pytest.fixture
def scores() -> Iterator[Scores]:
    state = Scores()
    with checks(state.answer) as state.url:
        yield state


def bestofn(*arguments: object) -> Result:
    """Run a command, in strict mode: nothing is compiled."""
    return CliRunner().invoke(program, [str(one) for one in arguments], env={"BESTOFN_REPRODUCIBLE": "strict"})


@pytest.mark.parametrize("processes", [1, 2])
def test_eval_keeps_no_chunk_with_a_missing_verdict_and_goes_on_when_the_judge_answers(
    scores: Scores, processes: int, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text(f"{STAR}\n{RING}\n")
    asked = ["eval", "--file", prompts, "--judge", scores.url, "--strategy", "n=2 steps=2", "--images", "1"]
    asked += ["--device", "cpu", "--out", out]
    scores.silent = {RING}
    result = bestofn(*asked, "--processes", processes)
    said = str(result.exception)
    assert result.exit_code == 1
    assert f"the judge {scores.url} gave no verdict on 16 of 16 images" in said
    assert "run the same command again when it answers" in said
    assert "\n" not in said
    assert not (out / "winners.json").exists()
    pool = out / "pool.jsonl"
    before = pool.read_text() if pool.exists() else ""
    assert '"prompt":1' not in before
    if processes == 1:
        assert '"prompt":0' in before, "what was judged before stays"
    scores.silent.clear()
    result = bestofn(*asked, "--processes", 1)
    assert result.exit_code == 0, result.output
    assert pool.read_text().startswith(before)
    for file in (pool, out / "winners.json"):
        assert "NaN" not in file.read_text()
    assert "nan" not in result.stdout


def test_a_pool_reads_chunks_with_missing_verdicts_as_not_drawn(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool.jsonl", Source("", "m", "", "j", ()))
    keys = [ChunkKey(number, SamplingConfig(2), 0) for number in (0, 1)]
    for key in keys:
        pool.append(key, Chunk([], [1.0] * CHUNK, [0.0] * CHUNK))
    identity, first, second = pool.path.read_text().splitlines()
    pool.path.write_text("\n".join((identity, first.replace("1.0", "NaN", 1), second)) + "\n")
    assert Pool(pool.path, pool.source).missing([SampleRequest(SamplingConfig(2), 1, [0, 1])]) == keys[:1]


def test_winner_that_the_scorer_does_not_score_counts_for_neither_judge(scores: Scores, tmp_path: Path) -> None:
    tasks = (Task(STAR, "", 1), Task(RING, "", 2))
    evaluation = EvaluationRun.of("shapes", "shapes", "cpu", tasks, tmp_path, scored_by=scores.url)
    chosen = {number: {0: Chunk([], [yes] * CHUNK, [0.0] * CHUNK)} for number, yes in ((0, 3.0), (1, -1.0))}
    evaluation.pool.chunks[SamplingConfig(12)] = chosen
    scores.silent = {RING}
    (figures,) = evaluation.winners([0, 1], [Strategy(2)], 1, tmp_path)["strategies"]
    assert (figures["scored"], figures["margin"], figures["judged_yes"]) == (1, 3, 1)


def labelled(folder: Path, prompts: int = 4) -> Path:
    """A list of red and blue images for prompts that want red ones."""
    lines = []
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
        lines += [{"image": f"{colour}.png", "prompt": f"red {i}", "correct": colour == "red"} for i in range(prompts)]
    path = folder / "labels.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_calibrate_counts_the_images_that_were_judged(scores: Scores, tmp_path: Path) -> None:
    labels, out = labelled(tmp_path), tmp_path / "c.json"
    scores.silent = {"red 0", "red 3"}
    result = bestofn("calibrate", labels, "--judge", scores.url, "--out", out)
    assert result.exit_code == 0, result.output
    assert "; 2 prompts, 4 images\n" in result.stdout
    assert "warning: the judge gave no verdict on 4 of 8 images, which are left out of the fit\n" in result.stderr
    fitted = json.loads(out.read_text())
    assert (fitted["prompts"], fitted["images"]) == (2, 4)


def test_judges_are_compared_with_missing_verdicts_wrong_in_accuracy_and_ties_in_auc(
    scores: Scores, tmp_path: Path
) -> None:
    labels, out = labelled(tmp_path), tmp_path / "out"
    scores.silent = {"red 0", "red 3"}
    asked = ("--labels", labels, "--out", out, "--device", "cpu")
    result = bestofn("eval", "--judges", f"{scores.url},shapes", *asked)
    assert result.exit_code == 0, result.output
    half, _ = json.loads((out / "judges.json").read_text())["judges"]
    assert (half["accuracy"], half["auc_within_prompt"], half["without_verdict"]) == (0.5, 0.75, 4)
