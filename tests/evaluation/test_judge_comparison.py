"""Judges compared on the same labelled images: figures of made-up verdicts, and two real judges by the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from bestofn.cli.main import program
from bestofn.evaluation.judge_comparison import JudgeRun, compare, table
from bestofn.evaluation.labels import read_labels
from bestofn.evaluation.tasks import benchmark
from bestofn.judge.verdict import BROKEN, Verdict
from bestofn.models.generator import Generator
from bestofn.models.random_init.checkpoint import make_random_checkpoint
from bestofn.models.sampling import generate
from bestofn.models.shapes.evaluator import evaluate as evaluator
from bestofn.models.shapes.world import Scene, Thing, render
from bestofn.service.core.errors import SetupError
from bestofn.service.media.codec import decode
from tests.judge.tiny_models import make_clip
from tests.tiny_pipelines import make_pipeline

PROMPTS, IMAGES = 10, 8
LINE = '{"image": "a.png", "prompt": "two hearts", "correct": true}'
BEFORE = Path(__file__).parents[2] / "evaluation" / "results" / "judge" / "before"


def made(name: str, sign: float, broken: int = 0) -> JudgeRun:
    """A judge whose log-odds say by `sign` which images are right: each prompt has its first half right."""
    fields = [[(sign * (4.0 - i - 0.5), i < IMAGES // 2) for i in range(IMAGES)] for _ in range(PROMPTS)]
    verdicts = [Verdict("yes" if m > 0 else "no", m / 2, -m / 2) for field in fields for m, _ in field]
    verdicts[:broken] = [BROKEN] * broken
    for i in range(broken):
        field = fields[i // IMAGES]
        field[i % IMAGES] = (math.nan, field[i % IMAGES][1])
    correct = [right for field in fields for _, right in field]
    fitted = {"calibration_error_before": 0.25, "calibration_error": 0.125} if sign > 0 else None
    return JudgeRun(name, "1", verdicts, correct, fields, fitted, None if sign < 0 else 0.5, 0.01)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'image,prompt,correct\r\na.png,"two, or 3",true\r\n',
            r'line 1: not JSON \(.*\); a line is {"image": "a.png"',
        ),
        ("[]", 'line 1: not an object; a line is {"image": "a.png"'),
        (f"{LINE}\n\n{LINE.replace('true', 'false')}\n", "line 3: line 1 has a label of a.png already; remove one"),
        (None, "labels.jsonl cannot be read: No such file or directory"),
    ],
    ids=["CSV", "no object", "two labels", "no file"],
)
def test_list_of_labels_that_cannot_be_meant_is_refused_with_its_line(
    tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "labels.jsonl"
    if text is not None:
        file.write_text(text, newline="")
    with pytest.raises((SetupError, ValueError), match=said):
        read_labels(file)


def test_image_in_two_groups_or_with_two_prompts_has_a_label_in_each(tmp_path: Path) -> None:
    lines = [LINE, LINE.replace("hearts", "rings"), LINE.replace("}", ', "group": 7}')]
    (tmp_path / "labels.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert len(read_labels(tmp_path / "labels.jsonl")) == 3


def test_figures_of_a_good_and_an_inverted_judge_are_opposite() -> None:
    figures = compare([made("good", 1), made("bad", -1), made("silent", 1, broken=2)])
    good, bad, silent = figures["judges"]
    assert (good["accuracy"], good["auc_within_prompt"], good["best_of"]["8"]["score"]) == (1, 1, 1)
    assert (bad["accuracy"], bad["auc_within_prompt"], bad["best_of"]["8"]["score"]) == (0, 0, 0)
    assert (good["fooled"], bad["fooled"], bad["ask_at_most"]) == (None, (0.5, 0.5), 4)
    assert (silent["without_verdict"], silent["accuracy"]) == (2, 78 / 80)
    assert silent["auc_within_prompt"] == pytest.approx(0.975)  # half of the first prompt's pairs are ties
    assert [one["same_choice"] for one in figures["agreement"]] == [0, 0.9, 0]
    assert list(figures["oracle"]) == ["1", "2", "4", "8"]
    json.dumps(figures, allow_nan=False)
    text = table(figures)
    assert (
        "| good | 1.000 | 1.000 | 0.250 | 0.125 | 0.500 | 0.500 | 0.500 | 1.000 | no sign of it | 0.5 | 0.01 |" in text
    )
    assert "bad cannot be calibrated" in text
    assert "silent gives no yes or no on 2 images" in text
    assert "| good and silent | 0.900 |" in text
    assert "| by chance | 0.125 |" in text


def test_judge_without_any_verdict_is_never_right() -> None:
    (mute, _) = compare([made("mute", 1, broken=PROMPTS * IMAGES), made("good", 1)])["judges"]
    assert (mute["without_verdict"], mute["accuracy"], mute["auc_within_prompt"]) == (80, 0, 0.5)


def test_numbers_that_do_not_exist_are_none() -> None:
    one = JudgeRun("one", "1", [BROKEN], [True], [[(math.nan, True)]], None, None, 0.01)
    figures = compare([one, one])
    assert figures["judges"][0]["auc_within_prompt"] is figures["agreement"][0]["same_choice"] is None
    json.dumps(figures, allow_nan=False)
    assert "| one and one | - |" in table(figures)


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(program, ["eval", "--device", "cpu", *arguments])


def test_two_real_judges_are_compared_on_drawn_images(tmp_path: Path) -> None:
    clip, labels, out = make_clip("clip", tmp_path / "clip"), tmp_path / "labels.jsonl", tmp_path / "out"
    lines = []
    for shape in ("star", "ring", "heart"):
        for i, drawn in enumerate((shape, "square", shape, "triangle")):
            name = f"{shape}-{i}.png"
            Image.fromarray(render(Scene((Thing(drawn, "red", 20 + 6 * i, 32, 24),), i))).save(tmp_path / name)
            lines.append({"image": name, "prompt": f"a photo of a {shape}", "correct": drawn == shape})
    labels.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = evaluate("--judges", f"shapes,clip:{clip}", "--labels", str(labels), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.stdout == (out / "judges.md").read_text()
    figures = json.loads((out / "judges.json").read_text())
    shapes, other = figures["judges"]
    assert (figures["prompts"], figures["images"], list(shapes["best_of"])) == (3, 12, ["1", "2", "4"])
    assert (shapes["name"], shapes["best_of"]["4"]["score"], shapes["auc_within_prompt"]) == ("shapes", 1, 1)
    assert shapes["tflops"] > other["tflops"] > 0 < shapes["seconds"]
    assert (shapes["accuracy"], other["accuracy"]) == (1, None)
    assert f"clip:{clip} has no calibration of its own, so its yes is not known." in result.stdout
    assert decode((out / "judges.png").read_bytes()).width > 100


def test_judges_are_compared_on_images_of_the_benchmark_that_are_drawn_once(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text("of a person")
    asked = ("--judges", f"shapes,{BEFORE}", "--out", str(tmp_path), "--prompts", "2")
    result = evaluate(*asked, "--samples", "2")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "labels.jsonl").read_text() == "of a person"
    (listed,) = tmp_path.glob("images-*/labels.jsonl")
    labels = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [(one["prompt"], one["group"]) for one in labels] == [(benchmark()[i].prompt, i) for i in (0, 0, 239, 239)]
    first = listed.parent / labels[0]["image"]
    with Image.open(first) as image:
        drawn = np.asarray(image)
    seed, spec = benchmark()[0].seed, benchmark()[0].spec
    assert spec is not None
    assert (drawn == generate(Generator.load("shapes"), labels[0]["prompt"], [seed, seed + 1])[0].numpy()).all()
    assert labels[0]["correct"] == evaluator(drawn, spec).correct
    written = first.stat().st_mtime_ns
    result = evaluate(*asked, "--samples", "4")
    assert result.exit_code == 0, result.output
    assert (first.stat().st_mtime_ns, len(list(first.parent.glob("*.png")))) == (written, 8)


def test_images_that_the_evaluator_cannot_measure_are_not_drawn(tmp_path: Path) -> None:
    model = make_random_checkpoint("tiny", tmp_path / "sana", seed=7)
    result = evaluate("--judges", f"shapes,{BEFORE}", "--model", str(model), "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, SetupError)
    assert "measures 64x64: take --model shapes, or label images yourself" in str(result.exception)


@pytest.mark.parametrize("asked", [("--judges", f"shapes,{BEFORE}"), ("--judge", "shapes")])
def test_pipeline_of_another_size_is_refused_before_its_weights_are_read(
    asked: tuple[str, ...], tmp_path: Path
) -> None:
    model = make_pipeline("flux", tmp_path / "flux")
    (file,) = (model / "transformer").glob("*.safetensors")
    weights = load_file(file)
    del weights[max(weights)]  # without which it cannot be loaded
    save_file(weights, file, {"format": "pt"})
    result = evaluate(*asked, "--model", str(model), "--out", str(tmp_path / "out"))
    assert "flux draws 256x256, and the benchmark's evaluator measures 64x64" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--judges", "shapes,shapes", "--labels", "x"], "two names or more, each once"),
        (["--labels", "x"], "--labels is for --judges: name them too"),
        (["--judges", "shapes,vlm:x", "--strategy", "n=2"], "--strategy is not for --judges: leave it out"),
        (["--judges", "shapes,vlm:x", "--labels", "x", "--samples", "2"], "--samples is not for --judges on --labels"),
        (["--judges", "shapes,vlm:x", "--labels", "x", "--replay"], "--replay is not for --judges on --labels"),
    ],
)
def test_wrong_options_are_refused_with_the_fix(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = evaluate("--out", str(tmp_path), *arguments)
    assert result.exit_code == 2
    assert said in result.output
