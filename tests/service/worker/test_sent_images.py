"""Sent images on their way to a judge: the same verdicts whoever judges them, and nothing left of them at the end."""

import asyncio
import io
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import bestofn
from bestofn.judge.judge import Judge, rank_images
from bestofn.judge.verdict import Rule
from bestofn.models.shapes.world import Scene, Thing, render
from bestofn.service.core.errors import Unavailable
from bestofn.service.core.jobs import JobSpec, JobStatus, SentImage
from bestofn.service.core.results import assemble
from bestofn.service.core.settings import Settings
from bestofn.service.engine.loader import load_engine
from bestofn.service.engine.protocol import HeatFailed, HeatFinished
from bestofn.service.media.codec import decode
from bestofn.service.queue.image_store import STAGED_MS
from bestofn.service.queue.job_queue import Queue
from tests.service.pairwise.vision_server import vision_server
from tests.waiting import PATIENCE, events_of, until

MakeSpec = Callable[..., JobSpec]
Serving = Callable[[Settings], AbstractContextManager[Any]]
Start = Callable[..., "subprocess.Popen[bytes]"]
embedded = pytest.mark.parametrize("server_program", ["valkey"], indirect=True)

PROGRAM = """
import sys
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.worker.worker import run_worker
settings, kind = Settings.model_validate_json(sys.argv[1]), sys.argv[2]
if kind == "fake":
    sys.exit(run_worker(settings, lambda: FakeEngine(slots=4, step_seconds=0.05)))
from bestofn.service.engine.loader import load_engine
sys.exit(run_worker(settings, lambda: load_engine(settings)))
"""
PROMPT = "a photo of a red star left of a blue circle"


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts worker processes, with the fake engine or that of the shapes, and ends those that are left."""
    processes: list[subprocess.Popen[bytes]] = []

    def worker(settings: Settings, kind: str = "fake") -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-c", PROGRAM, settings.model_dump_json(), kind]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return processes[-1]

    yield worker
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Queue]:
    async with aclosing(await Queue.connect(settings)) as opened:
        yield opened


def job_of(make_spec: MakeSpec, number: int, **fields: Any) -> tuple[JobSpec, list[bytes]]:
    """A job of `number` sent images in heats of four, and their files."""
    files = [file_of(Image.new("RGB", (40, 30), (4 * i, 7, 9))) for i in range(number)]
    sent = [SentImage(name=f"{i}.png", format="png", size=len(data)) for i, data in enumerate(files)]
    zero = dict.fromkeys(("seed", "width", "height", "num_inference_steps", "guidance_scale"), 0)
    return make_spec(num_samples=number, sent=sent, **zero, **fields), files


async def left(queue: Queue, job: str) -> list[bytes]:
    """Keys that hold images of a job, or may."""
    found = [key async for key in queue.redis.scan_iter(queue.keys("sent", job))]
    return found + [key async for key in queue.redis.scan_iter(queue.keys("staged", job, "*", "*"))]


async def ended(queue: Queue, job: str) -> JobStatus:
    async for _ in events_of(queue, job):
        pass
    return (await queue.record(job)).status


async def answer(queue: Queue, job: str) -> tuple[object, ...]:
    record = await queue.record(job)
    result = assemble(record.spec, record.status, record.outcomes)
    images = [await queue.image(job, image.candidate) for image in result.images]
    return result.candidates, result.bracket, images, result.status


@embedded
@pytest.mark.parametrize("apart", [False, True], ids=["in redis", "in a folder"])
async def test_kill_9_of_the_worker_in_the_middle_changes_nothing(
    settings: Settings, make_spec: MakeSpec, start: Start, tmp_path: Path, apart: bool
) -> None:
    if apart:
        (tmp_path / "images").mkdir()
        settings = settings.model_copy(update={"images_dir": tmp_path / "images"})
    async with aclosing(await Queue.connect(settings)) as queue:
        first = start(settings)
        while not await queue.workers():
            await asyncio.sleep(0.02)
        (undisturbed, files), (disturbed, _) = (job_of(make_spec, 48, top_k=3) for _ in range(2))
        await queue.submit(undisturbed, cost=1, sent=files)
        assert await ended(queue, undisturbed.id) is JobStatus.SUCCEEDED
        await queue.submit(disturbed, cost=1, sent=files)
        async for event in events_of(queue, disturbed.id):
            if event.type == "heat":
                break
        first.send_signal(signal.SIGKILL)
        start(settings)
        assert await ended(queue, disturbed.id) is JobStatus.SUCCEEDED
        candidates, bracket, images, status = await answer(queue, disturbed.id)
        assert (candidates, bracket, images, status) == await answer(queue, undisturbed.id)
        winners = sorted(candidates, key=lambda one: one.rank)[:3]  # type: ignore[call-overload,attr-defined]
        assert images == [files[one.index] for one in winners]
        for key in await left(queue, disturbed.id):  # of a worker that died between staging and completing
            assert b":staged:" in key
            assert 0 < await queue.redis.pttl(key) <= STAGED_MS
        held = int(await queue.redis.hget(queue.keys("reserved"), disturbed.id))
        assert held == (3 * 17 if apart else sum(len(files[one.index]) for one in winners))


async def test_cancel_drops_the_images_at_once(
    queue: Queue, make_spec: MakeSpec, open_lane: Callable[..., Any]
) -> None:
    lane = await open_lane(queue)
    spec, files = job_of(make_spec, 8)
    await queue.submit(spec, cost=1, sent=files)
    (claim,) = await lane.claim(1, 0)
    assert dict(claim.heat.images) == dict(enumerate(files[:4]))
    assert await queue.redis.ttl(queue.keys("sent", spec.id)) == -1  # until the job's end
    assert await queue.cancel(spec.id) is JobStatus.CANCELED
    assert (await queue.backlog()).image_bytes == 0
    assert await left(queue, spec.id) == []
    assert [image.name for image in (await queue.spec(spec.id)).sent] == [""] * 8
    assert await lane.claim(8, 0) == []


@embedded
async def test_finals_are_played_among_sent_images(settings: Settings, make_spec: MakeSpec, start: Start) -> None:
    with vision_server() as vision:  # which prefers the brighter image, here the last
        settings = settings.model_copy(update={"pairwise_judge": vision.url})
        async with aclosing(await Queue.connect(settings)) as queue:
            start(settings)
            while not await queue.workers():
                await asyncio.sleep(0.02)
            spec, files = job_of(make_spec, 8, finals={"max_entrants": 8, "margin": 100.0})
            await queue.submit(spec, cost=1, sent=files)
            assert await ended(queue, spec.id) is JobStatus.SUCCEEDED
            record = await queue.record(spec.id)
            assert record.finals is not None
            assert len(record.finals.rounds) == 3
            assert await queue.image(spec.id, 7) == files[7]
            assert await left(queue, spec.id) == []


async def test_a_refused_job_leaves_no_images(queue: Queue, make_spec: MakeSpec) -> None:
    spec, files = job_of(make_spec, 8)
    with pytest.raises(Unavailable, match="no worker has ever announced"):
        await queue.submit(spec, cost=1, sent=files)
    assert await left(queue, spec.id) == []


async def test_a_job_whose_images_are_lost_fails_with_the_reason(
    queue: Queue, make_spec: MakeSpec, open_lane: Callable[..., Any]
) -> None:
    lane = await open_lane(queue)
    spec, files = job_of(make_spec, 4)
    await queue.submit(spec, cost=1, sent=files)
    await queue.redis.hdel(queue.keys("sent", spec.id), "2")
    assert await lane.claim(1, 0) == []
    record = await queue.record(spec.id)
    assert (record.status, record.error) == (JobStatus.FAILED, "the sent image of candidate 2 is gone")


def scene(*things: Thing, seed: int = 3) -> Image.Image:
    return Image.fromarray(render(Scene(things, seed)))


def star(x: float, colour: str = "red") -> Thing:
    return Thing("star", colour, x, 32, 22)


def circle(x: float, colour: str = "blue") -> Thing:
    return Thing("circle", colour, x, 32, 22)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of which the third shows the prompt, turned by its EXIF orientation, and the others do not."""
    folder = tmp_path_factory.mktemp("pictures")
    right = scene(star(16), circle(48))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    clear = scene(Thing("triangle", "red", 16, 32, 22), circle(48)).convert("RGBA")
    deep = Image.fromarray(np.full((50, 70), 40_000, np.uint16))
    files = {
        "triangle.png": file_of(clear),
        "green.webp": file_of(scene(star(16, "green"), circle(48)), "WEBP", lossless=True),
        "right.png": file_of(right.transpose(Image.Transpose.ROTATE_90), exif=exif),
        "alone.jpg": file_of(scene(circle(32)), "JPEG", quality=95),
        "grey.png": file_of(deep),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def test_the_engine_judges_files_as_the_command_does(make_spec: MakeSpec, pictures: list[Path]) -> None:
    """Beside a job that is drawn, with two judges; a file that cannot be decoded fails its job alone."""
    engine = load_engine(Settings(threads=1, devices="cpu", second_judge="shapes"))
    judges = engine.judge_info.revision, engine.judge_info.revision
    files = [path.read_bytes() for path in pictures]

    def job(files: list[bytes], **fields: Any) -> JobSpec:
        sent = [SentImage(format="png", size=len(data)) for data in files]
        zero = dict.fromkeys(("seed", "width", "height", "num_inference_steps", "guidance_scale"), 0)
        named = {"model": engine.model_info.revision, "judge": judges[0], "second_judge": judges[1]}
        return make_spec(prompt=PROMPT, num_samples=len(files), heat_size=8, sent=sent, **zero, **named, **fields)

    whole = job(files, rule=Rule.LOWER_BOUND, thumbnails=True)
    broken = job([files[0], b"no picture"])
    drawn = whole.model_copy(
        update={"id": "d0", "sent": (), "width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 4.0}
    )
    for spec, data in ((whole, files), (broken, [files[0], b"no picture"]), (drawn, [])):
        heat = spec.heat(0)
        engine.admit(replace(heat, images=dict(enumerate(data))))
    events = []
    while engine.busy:
        events += engine.tick()
    (failed,) = (event for event in events if isinstance(event, HeatFailed))
    assert (failed.job, failed.final) == (broken.id, True)
    assert failed.reason.startswith("images[1]: not a readable PNG, WebP or JPEG (10 bytes)")
    finished = {event.job: event.outcome for event in events if isinstance(event, HeatFinished)}
    assert finished.keys() == {whole.id, drawn.id}
    outcome = finished[whole.id]
    verdicts, order, _ = rank_images(Judge.load(), PROMPT, [decode(data) for data in files], batch=1)
    assert [one.verdict.answer for one in outcome.candidates] == [one.answer for one in verdicts]
    for candidate, verdict in zip(outcome.candidates, verdicts, strict=True):
        assert candidate.seed is None
        assert candidate.verdict.yes_logit == pytest.approx(verdict.yes_logit, abs=1e-3)
        assert candidate.verdict.no_logit == pytest.approx(verdict.no_logit, abs=1e-3)
    assert dict(outcome.images) == {order[0]: files[order[0]]}
    assert (order[0], outcome.usage.judge_forwards, outcome.usage.transformer_forwards) == (2, 10, 0)


@embedded
def test_the_right_picture_wins_on_a_server_with_the_shapes_judge(
    settings: Settings,
    serving: Serving,
    start: Start,
    pictures: list[Path],
    run: Callable[..., tuple[int, str, str]],
) -> None:
    settings = settings.model_copy(update={"threads": 1, "devices": "cpu"})
    start(settings, "shapes")
    with serving(settings) as api:
        until(lambda: httpx.get(f"{api.url}/readyz", timeout=PATIENCE).is_success)
        seen: list[int] = []
        with bestofn.Client(api.url) as client:
            result = client.rank(PROMPT, pictures, on_progress=lambda progress: seen.append(progress.judged))
            data = [pictures[0].read_bytes(), Image.open(pictures[2])]
            assert client.rank(PROMPT, data).images[0].candidate == 1
            assert client.wait(result.id).image.size == (64, 64)
            with pytest.raises(bestofn.BestOfNError, match=r"the judge shapes reads \d+; shorten it by"):
                client.rank("red " * 400, pictures)
            with pytest.raises(bestofn.BestOfNError, match=r"images\[1\] has 16,777,217 bytes"):
                client.rank(PROMPT, [data[0], bytes(2**24 + 1)])
        assert (result.images[0].name, result.images[0].verdict.answer) == ("right.png", "yes")
        assert seen[-1] == 5

        async def again() -> Any:
            async with bestofn.AsyncClient(api.url) as client:
                return await client.rank(PROMPT, pictures, top_k=2, rule="official")

        assert [image.rank for image in asyncio.run(again()).images] == [1, 2]
        paths = [str(path) for path in pictures]
        there = run("rank", PROMPT, *paths, "--server", api.url)
        here = run("rank", PROMPT, *paths)
        assert (there[0], here[0]) == (0, 0)

        def rows(out: str) -> list[list[str]]:
            lines = [line.split() for line in out.splitlines()]
            return [line[:2] + line[-1:] if line[0].isdigit() else line for line in lines]

        assert rows(there[1]) == rows(here[1])
        report = json.loads(run("rank", PROMPT, *paths, "--server", api.url, "--json")[1])
        same = json.loads(run("rank", PROMPT, *paths, "--json")[1])
        assert report.keys() == same.keys()
        assert (report["judge"], report["bracket"]) == (same["judge"], same["bracket"])
        assert report["images"][2].keys() == same["images"][2].keys()
