"""The Python clients against a real API, on good lines and on bad ones."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import socketserver
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from httpx_sse import ServerSentEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import bestofn
from bestofn import Progress
from bestofn.cli.progress_bar import describe
from bestofn.service.client.actions import Emit, Flow, Open, Send, Sleep
from bestofn.service.client.client import AsyncClient, Client
from bestofn.service.client.discovery import address_file, is_bestofn
from bestofn.service.client.drivers import AsyncDriver, Driver
from bestofn.service.client.errors import error_of
from bestofn.service.client.event_stream import Following
from bestofn.service.client.events import FinalsEvent, QueuedEvent, StartedEvent, read_event
from bestofn.service.client.flows import Flows
from bestofn.service.client.generation import Generation
from bestofn.service.client.options import Options
from bestofn.service.client.rank_form import files_of
from bestofn.service.client.retries import passes
from bestofn.service.core.backoff import LONGEST_ASKED_SECONDS, asked_delay
from bestofn.service.core.errors import (
    BestOfNError,
    IdempotencyMismatch,
    InvalidRequest,
    JobCanceled,
    JobFailed,
    JobNotFound,
    NotAuthorized,
    SetupError,
    Unavailable,
)
from bestofn.service.core.jobs import JobStatus
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FAILS, fake_image
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
LONG: Options = {"num_samples": 4096, "num_inference_steps": 100}  # minutes of the fake engine
WHOLE = 1 << 30


class Proxy:
    """Carries connections to `upstream`; the n-th answers as many bytes as the n-th of `budgets` says, then is cut."""

    def __init__(self, upstream: str, budgets: tuple[int, ...] = ()) -> None:
        self.upstream = httpx.URL(upstream)
        self.budgets = deque(budgets)
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for end in self._open:
            _cut(end)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed by __exit__
            while True:
                near, _ = self._listening.accept()
                self.connections += 1
                budget = self.budgets.popleft() if self.budgets else WHOLE
                try:
                    far = socket.create_connection((self.upstream.host, self.upstream.port or 80))
                except ConnectionError:
                    near.close()
                    continue
                self._open += [near, far]
                threading.Thread(target=_carry, args=(near, far, WHOLE)).start()
                threading.Thread(target=_carry, args=(far, near, budget)).start()


def _carry(source: socket.socket, sink: socket.socket, budget: int) -> None:
    with contextlib.suppress(OSError):
        while budget >= 0 and (data := source.recv(65_536)):
            sink.sendall(data[:budget])
            budget -= len(data)
    _cut(source)
    _cut(sink)


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@pytest.fixture
def client(served: Any) -> Iterator[Client]:
    with Client(served.url, timeout=PATIENCE) as client:
        yield client


def test_generate_returns_the_best_as_a_image(client: Client, tmp_path: Path) -> None:
    seen: list[Progress] = []
    prompt = 'a <b>red</b> star & "more"'
    generation = client.generate(prompt, num_samples=40, top_k=2, seed=100, on_progress=seen.append)
    assert generation.image.getpixel((0, 0)) == fake_image(generation.seed, 64, 64).getpixel((0, 0))
    assert [winner.rank for winner in generation.images] == [1, 2]
    assert generation.score == generation.images[0].verdict.p_yes
    assert len(generation.candidates) == 40
    assert generation.bracket[-1][-1].winner == generation.best.candidate == generation.seed - 100
    assert generation.usage is not None
    fractions = [progress.fraction for progress in seen]
    assert (seen[-1].status, fractions[-1]) == ("succeeded", 1.0)
    assert fractions == sorted(fractions)
    assert seen[-1].best is not None
    assert seen[-1].best.seed == generation.seed

    assert generation.save(tmp_path / "best.png").read_bytes() == generation.best.data
    assert generation.save(str(tmp_path / "best")).read_bytes() == generation.best.data
    with Image.open(generation.images[1].save(tmp_path / "second.webp")) as image:
        assert image.format == "WEBP"
    page = generation._repr_html_()
    assert "a &lt;b&gt;red&lt;/b&gt; star &amp; &quot;more&quot;" in page
    assert "<b>" not in page
    assert f"seed {generation.seed}" in page
    assert generation.best._repr_png_() == generation.best.data
    assert repr(generation).startswith(f"Generation({prompt!r}, best of 40, score=")


def test_a_job_is_submitted_followed_and_read_in_parts(client: Client) -> None:
    client.ready()
    job = client.submit("p", num_samples=300, num_inference_steps=1, thumbnails=True, format="webp")
    generation = client.wait(job.id)
    late: list[Progress] = []
    assert client.wait(job.id, late.append).result == generation.result
    assert {progress.status for progress in late} == {"succeeded"}
    result = client.result(job.id)
    assert generation.result == result
    assert (len(result.candidates), sum(map(len, result.bracket)), result.next) == (300, 303, None)
    assert client.image(job.id) == generation.best.data
    assert client.image(job.id)[8:12] == client.thumbnail(job.id, 299)[8:12] == b"WEBP"
    assert generation.best._repr_png_().startswith(b"\x89PNG")
    assert client.cancel(job.id).status == "succeeded"
    assert [model.id for model in client.models()] == ["fake"]


async def test_the_awaited_client_does_the_same(served: Any) -> None:
    async with AsyncClient(served.url, timeout=PATIENCE) as client:
        seen: list[Progress] = []

        async def show(progress: Progress) -> None:
            await asyncio.sleep(0)
            seen.append(progress)

        await client.ready()
        one, other = await asyncio.gather(
            client.generate("p", num_samples=20, seed=5, on_progress=show),
            client.generate("p", num_samples=20, seed=5, on_progress=seen.append),
        )
        assert one.best == other.best
        assert len(seen) >= 6
        job = await client.submit("p", num_samples=20, seed=5, thumbnails=True)
        kinds = [event.type async for event in client.events(job.id)]
        assert kinds[0] == "queued"
        assert kinds[-1] == "result"
        assert (await client.wait(job.id)).best.data == one.best.data == await client.image(job.id)
        assert (await client.thumbnail(job.id, 3))[8:12] == b"WEBP"
        assert (await client.result(job.id)).candidates[19].seed == 24
        assert (await client.cancel(job.id)).status == "succeeded"
        assert [model.id for model in await client.models()] == ["fake"]


def test_events_go_on_where_the_connection_was_cut(served: Any, serving: Serving) -> None:
    with Client(served.url, timeout=PATIENCE) as direct, serving(served.settings) as second:
        job = direct.submit("p", num_samples=64, num_inference_steps=20)
        with Proxy(second.url, (700, 1500, 4000, 9000)) as proxy, Client(proxy.url, timeout=PATIENCE) as client:
            seen = list(client.events(job.id))
            assert proxy.connections == 5
        told = [(event.type, event.id) for event in seen if event.id and event.type != "progress"]
        # Of the progress, only the last is kept for those who come late.
        kept = [(event.type, event.id) for event in direct.events(job.id) if event.type != "progress"]
        assert told == kept
        half = next(place for place, event in enumerate(kept) if event[0] == "match")
        rest = [event.id for event in direct.events(job.id, after=kept[half][1]) if event.type != "progress"]
        assert rest == [place for _, place in kept[half + 1 :]]


def test_a_job_is_followed_over_a_restart_of_the_server(served: Any, serving: Serving) -> None:
    moved = threading.Event()

    with contextlib.ExitStack() as first:
        api = first.enter_context(serving(served.settings))
        with Proxy(api.url) as proxy, Client(proxy.url, timeout=PATIENCE) as client:

            def move(progress: Progress) -> None:
                if progress.judged and not moved.is_set():
                    proxy.upstream = httpx.URL(served.url)
                    first.close()
                    moved.set()

            generation = client.generate("p", num_samples=48, num_inference_steps=8, on_progress=move)
    assert moved.is_set()
    assert len(generation.candidates) == 48


def watched(flow: Flow[Any], log: list[tuple[Any, Any]], *, hurry: bool = True) -> Flow[Any]:
    """The flow, with what it asks for and what came of it in the log; in a hurry, its pauses are not made."""
    step, outcome = flow.send, None
    while True:
        try:
            action = step(outcome)
        except StopIteration as end:
            return end.value
        try:
            step, outcome = flow.send, (yield Sleep(0.0) if hurry and isinstance(action, Sleep) else action)
        except BaseException as error:
            step, outcome = flow.throw, error
        log.append((action, outcome))


def test_a_lost_answer_does_not_draw_twice(served: Any) -> None:
    log: list[tuple[Any, Any]] = []
    with Proxy(served.url, (0, 0)) as proxy, httpx.Client(base_url=proxy.url, timeout=PATIENCE) as http:
        flow = Flows(proxy.url, 4, 4).submit({"prompt": "p"}, None)
        job = Driver(http).run(watched(flow, log))
    first, _, second, _, third = [action for action, _ in log]
    assert first == second == third
    again = httpx.post(f"{served.url}{first.path}", headers=first.headers, json=first.json, timeout=PATIENCE)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["id"] == job.id
    with Client(served.url, timeout=PATIENCE) as client, pytest.raises(IdempotencyMismatch):
        client.submit("q", idempotency_key=first.headers["Idempotency-Key"])


def test_a_refusal_that_passes_is_tried_again_when_the_server_says(idle: Settings, serving: Serving) -> None:
    with (
        serving(idle.model_copy(update={"max_queued_candidates": 64})) as full,
        Client(full.url, timeout=PATIENCE) as client,
    ):
        job = client.submit("p", num_samples=64)
        log: list[tuple[Any, Any]] = []

        def make_room() -> None:
            until(lambda: log)  # it was refused
            client.cancel(job.id)

        threading.Thread(target=make_room).start()
        with httpx.Client(base_url=full.url, timeout=PATIENCE) as http:
            flow = Flows(full.url, 4, 4).submit({"prompt": "p", "num_samples": 1}, None)
            Driver(http).run(watched(flow, log, hurry=False))
    answers, pauses = [answer for _, answer in log[::2]], [pause for pause, _ in log[1::2]]
    assert [answer.status_code for answer in answers] == [429] * len(pauses) + [202]
    assert pauses
    for answer, pause in zip(answers, pauses, strict=False):
        assert pause.seconds >= float(answer.headers["retry-after-ms"]) / 1000 > 0


HEADERS: dict[str, tuple[int, dict[str, str], float | None, bool]] = {
    "milliseconds go first": (429, {"retry-after-ms": "250", "retry-after": "7"}, 0.25, True),
    "seconds": (503, {"retry-after": "7"}, 7.0, True),
    "a date that is over": (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0, True),
    "a date by a clock that is behind": (
        503,
        {"retry-after": "Wed, 21 Oct 2015 07:28:09 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"},
        9.0,
        True,
    ),
    "a date by a clock that is ahead": (
        503,
        {"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT", "date": "Wed, 21 Oct 2099 07:28:00 GMT"},
        0.0,
        True,
    ),
    "nonsense": (502, {"retry-after": "soon"}, None, True),
    "it says no": (429, {"x-should-retry": "false"}, None, False),
    "it says yes": (409, {"x-should-retry": "true"}, None, True),
    "a refusal for good": (422, {}, None, False),
}


@pytest.mark.parametrize(("status", "headers", "delay", "again"), HEADERS.values(), ids=HEADERS.keys())
def test_when_a_request_is_made_again(status: int, headers: dict[str, str], delay: float | None, again: bool) -> None:
    answer = httpx.Response(status, headers=headers)
    assert (asked_delay(answer.headers), passes(answer)) == (delay, again)


def test_errors_are_those_that_the_server_names(client: Client, serving: Serving, served: Any, keys: Any) -> None:
    with pytest.raises(InvalidRequest, match="topk is not a field; use top_k") as refused:
        client.submit("p", topk=3)  # type: ignore[call-arg]
    assert refused.value.field == "topk"
    for key in ("schlüssel", "two\nlines"):
        with pytest.raises(InvalidRequest, match="must be printable ASCII"):
            client.submit("p", idempotency_key=key)
    for fields in ({"guidance_scale": float("nan")}, {"prompt": "\ud800"}, {"seed": object()}):
        with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
            client.submit(**{"prompt": "p"} | fields)
    with pytest.raises(JobFailed, match=r"job \w+ failed: the prompt asked for it"):
        client.generate(FAILS, num_samples=1)
    for call in (client.result, client.cancel, client.wait, lambda job: list(client.events(job))):
        with pytest.raises(JobNotFound, match="0123"):
            call("0123")
    with serving(served.settings.model_copy(update=keys("right"))) as locked:
        with pytest.raises(NotAuthorized), Client(locked.url, "wrong", timeout=PATIENCE) as stranger:
            stranger.models()
        with Client(locked.url, "right", timeout=PATIENCE) as friend:
            assert friend.models()
    with Client("http://127.0.0.1:9", retries=1) as lost, pytest.raises(Unavailable, match="cannot be reached"):
        lost.generate("p")
    with pytest.raises(Unavailable, match="starts with http://"), Client("localhost") as lost:
        lost.ready()


@pytest.mark.parametrize("value", [np.int64(1), {1}, float("inf")], ids=["numpy", "set", "infinite"])
def test_value_that_json_cannot_hold_names_its_field(value: Any, client: Client) -> None:
    images = [Image.new("RGB", (8, 8))] * 2
    for call in (lambda: client.submit("p", top_k=value), lambda: client.rank("p", images, top_k=value)):
        with pytest.raises(
            InvalidRequest, match=r"^top_k cannot be written as JSON .* such as int\(top_k\)"
        ) as refused:
            call()
        assert refused.value.field == "top_k"


def test_job_id_with_characters_of_a_path_is_unknown(client: Client) -> None:
    job = client.submit("p", num_samples=1).id
    for call in (client.result, client.cancel, client.image, lambda id: list(client.events(id))):
        with pytest.raises(JobNotFound):
            call(f"{job}?limit=1")


def test_rank_with_one_path_counts_one_image(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    for one in (tmp_path / "one.png", str(tmp_path / "one.png"), (tmp_path / "one.png").read_bytes()):
        with pytest.raises(InvalidRequest, match="images must be 2 to 64 files, got 1"):
            files_of(one)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("name", ["best.png", "best.jpg"])
def test_save_on_a_full_disk_names_the_file(name: str, client: Client, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / name}'"):
        client.generate("p", num_samples=1).save(tmp_path / name)


def test_client_that_meets_another_program_says_so() -> None:
    request = httpx.Request("GET", "http://there/x")
    gateway = error_of(httpx.Response(502, text="<html>Bad Gateway", request=request))
    assert isinstance(gateway, Unavailable)
    assert "http://there/x answered 502" in gateway.detail
    openai = {"error": {"message": "no", "type": "invalid_request_error", "param": "size", "code": "invalid_request"}}
    refused = error_of(httpx.Response(400, json=openai, request=request))
    assert (type(refused), refused.detail, refused.field) == (InvalidRequest, "no", "size")


def test_which_server_is_meant(served: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BESTOFN_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("BESTOFN_SERVER", raising=False)
    with pytest.raises(SetupError, match="run `bestofn up`"):
        Client()
    address_file(Settings(data_dir=tmp_path)).write_text(json.dumps({"server": served.url}))
    with Client() as found:
        assert found.server == served.url
    monkeypatch.setenv("BESTOFN_SERVER", "http://named/")
    with Client() as named:
        assert named.server == "http://named"
    with Client("http://argument") as argument:
        assert argument.server == "http://argument"


@pytest.mark.parametrize("key", ["schlüssel", "SECRET\n", " ", "a b"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(SetupError, match="the API key") as refused:
        Client("http://127.0.0.1:1", key)
    assert "SECRET" not in refused.value.detail


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "socks://127.0.0.1:9"])
def test_no_proxy_is_asked_for_a_server_on_this_machine(
    served: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: str
) -> None:
    for name in ("NO_PROXY", "no_proxy", "BESTOFN_SERVER"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("BESTOFN_DATA_DIR", str(tmp_path))
    address_file(Settings(data_dir=tmp_path)).write_text(json.dumps({"server": served.url}))
    assert is_bestofn(served.url)
    for server in (None, served.url):
        with Client(server) as client:
            client.ready()
    reached = pytest.raises(Unavailable, match="cannot be reached")
    unfit = pytest.raises(SetupError, match="ALL_PROXY cannot be used")
    with unfit if proxy.startswith("socks") else reached, Client("http://bestofn.test", retries=0) as remote:
        remote.ready()


def test_ctrl_c_cancels_the_job(client: Client) -> None:
    jobs: list[str] = []

    def interrupt_soon(progress: Progress) -> None:
        if not jobs:
            jobs.append(progress.job)
            threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            client.generate("p", on_progress=interrupt_soon, **LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    assert client.result(jobs[0]).status == "canceled"


def test_client_callback_that_raises_cancels_the_job(client: Client) -> None:
    jobs: list[str] = []

    def fail(progress: Progress) -> None:
        jobs.append(progress.job)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.generate("p", on_progress=fail, **LONG)
    assert client.result(jobs[0]).status == "canceled"


async def test_a_cancelled_task_cancels_its_job_even_before_it_knows_of_it(served: Any) -> None:
    with Proxy(served.url, (0,)) as proxy:
        async with (
            AsyncClient(proxy.url, timeout=PATIENCE, retries=8) as client,
            AsyncClient(served.url, timeout=PATIENCE) as direct,
        ):
            task = asyncio.create_task(client.generate("p", idempotency_key="lost", **LONG))
            while not proxy.connections:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(JobCanceled):
                await direct.submit("p", idempotency_key="lost", **LONG)

            running = asyncio.Event()
            task = asyncio.create_task(
                direct.generate("p", idempotency_key="known", on_progress=lambda _: running.set(), **LONG)
            )
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(JobCanceled):
                await direct.submit("p", idempotency_key="known", **LONG)

            task = asyncio.create_task(direct.generate("p", idempotency_key="theirs", **LONG))
            await direct.cancel((await direct.submit("p", idempotency_key="theirs", **LONG)).id)
            with pytest.raises(JobCanceled, match="was cancelled"):
                await task


def test_the_bar_says_how_long_a_job_waits_and_how_far_its_finals_are() -> None:
    waiting = Progress(job="j", status=JobStatus.QUEUED, num_samples=8, total_steps=160)
    assert describe(waiting) == "waiting"
    told = waiting.after(QueuedEvent(job="j", position=3, estimated_wait_seconds=41.6))
    assert describe(told) == "waiting, place 3, about 42 s"
    assert describe(told.after(QueuedEvent(job="j", position=3, estimated_wait_seconds=600))).endswith("about 10 min")
    running = told.after(StartedEvent())
    assert (describe(running), running.position, running.after(QueuedEvent(job="j"))) == ("drawing", None, running)
    match = {"a": 5, "b": 2, "answers": [5, 2], "winner": 5}
    state = {"judge": "m", "entrants": [5, 1, 2], "rounds": [[{"a": 5, "b": None, "answers": [], "winner": 5}, match]]}
    met = read_event(ServerSentEvent("finals", json.dumps(state), "1-0.0"))
    assert isinstance(met, FinalsEvent)
    assert describe(running.after(met)) == "finals: 1 of 2 matches"
    over = running.model_copy(update={"status": JobStatus.SUCCEEDED})
    assert over.after(met) is over


def test_the_options_are_the_fields_of_a_request() -> None:
    assert Options.__annotations__.keys() == GenerateRequest.model_fields.keys() - {"prompt"}


def test_package_exports_these_names() -> None:
    assert set(bestofn.__all__) == set(dir(bestofn))
    assert all(getattr(bestofn, name) is not None for name in bestofn.__all__)
    assert issubclass(bestofn.BestOfNError, Exception)
    assert Generation.__doc__ is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = bestofn.nothing  # type: ignore[attr-defined]


# A server that misbehaves as it is told, and the ten events that it has.
EVENTS = [
    f"id: {number}\nevent: match\ndata: "
    + json.dumps({"round": 0, "place": number, "a": number, "b": None, "winner": number, "text": "a\u2028b"})
    + "\n\n"
    for number in range(9)
] + ['id: 9\nevent: error\ndata: {"code": "job_failed", "detail": "no"}\n\n']


class Misbehaving(socketserver.ThreadingTCPServer):
    """Answers the n-th request as the n-th of `script` says, and all later ones well."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Misbehaviour)
        self.script: deque[tuple[str, int]] = deque()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Misbehaviour(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Misbehaving)
        after = -1
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            after = int(value) if name.lower() == "last-event-id" else after
        how, much = self.server.script.popleft() if self.server.script else ("whole", 0)
        body = "".join(EVENTS[after + 1 :]).encode()
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
        match how:
            case "refused":
                self.wfile.write(f"HTTP/1.1 {much} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            case "nothing":
                pass
            case "broken":
                self.wfile.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:much])
            case "ended":
                self.wfile.write(f"{head}\r\n".encode() + body[:much])
            case _:
                self.wfile.write(f"{head}\r\n".encode() + body)


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[Misbehaving]:
    with Misbehaving() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@settings(max_examples=25, deadline=None)
@given(
    script=st.lists(
        st.one_of(
            st.tuples(st.just("refused"), st.sampled_from([429, 502, 503, 404])),
            st.tuples(st.just("nothing"), st.just(0)),
            st.tuples(st.sampled_from(["broken", "ended"]), st.integers(0, 900)),
        ),
        max_size=5,
    )
)
def test_both_drivers_see_the_same_events_whatever_happens(
    misbehaving: Misbehaving, script: list[tuple[str, int]]
) -> None:
    def log_of(drive: Callable[[Flow[None]], object]) -> tuple[list[Any], list[str], str]:
        misbehaving.script = deque(script)
        log: list[tuple[Any, Any]] = []
        said = ""
        try:
            drive(watched(Flows(misbehaving.url, 2, 2).events("j", None), log))
        except BestOfNError as error:
            said = error.detail
        # How long it pauses is chance.
        actions = [Sleep if isinstance(action, Sleep) else action for action, _ in log]
        return actions, [action.value.id for action, _ in log if isinstance(action, Emit)], said

    def blocking(flow: Flow[None]) -> None:
        with httpx.Client(base_url=misbehaving.url, timeout=PATIENCE) as http:
            for _ in Driver(http).iterate(flow):
                pass

    async def awaited(flow: Flow[None]) -> None:
        async with httpx.AsyncClient(base_url=misbehaving.url, timeout=PATIENCE) as http:
            async for _ in AsyncDriver(http).iterate(flow):
                pass

    seen = log_of(blocking)
    assert log_of(lambda flow: asyncio.run(awaited(flow))) == seen
    _, ids, said = seen
    assert ids == [str(number) for number in range(len(ids))]  # neither gap nor repetition
    assert said or len(ids) == len(EVENTS)


def test_a_server_that_asks_for_too_long_is_not_waited_for() -> None:
    answer = httpx.Response(503, headers={"retry-after": str(LONGEST_ASKED_SECONDS + 1)}, json={})
    answer.request = httpx.Request("GET", "http://there")
    flow = Flows("http://there", 4, 4).result("j")
    assert isinstance(next(flow), Send)
    with pytest.raises(Unavailable):
        flow.send(answer)


def test_a_stream_of_something_else_is_refused() -> None:
    page = httpx.Response(200, text="<html>", request=httpx.Request("GET", "http://there"))
    flow = Flows("http://there", 4, 4).events("j", None)
    assert isinstance(next(flow), Open)
    with pytest.raises(BestOfNError, match="is it a bestofn server"):
        flow.send(page)


def test_an_event_that_keeps_no_place_has_no_id() -> None:
    stream = Following("http://server", "job", None, 0)
    told = []
    for position, place in ((2, "1-0.0"), (1, "1-0.0"), (1, "1-0.0")):
        flow = stream.next()
        action = next(flow)
        if isinstance(action, Open):
            request = httpx.Request("GET", "http://server/jobs/job/events")
            flow.send(httpx.Response(200, headers={"content-type": "text/event-stream"}, request=request))
        message = ServerSentEvent("queued", json.dumps({"job": "job", "position": position}), place)
        try:
            flow.send(message)
        except StopIteration as end:
            told.append((end.value.position, end.value.id))
    assert told == [(2, "1-0.0"), (1, None)]
    assert stream.last == "1-0.0"
