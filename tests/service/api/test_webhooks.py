"""Webhooks over real sockets: signed, sent again, shared by processes, and never to an address that is not allowed."""

import ast
import asyncio
import base64
import contextlib
import ipaddress
import json
import os
import queue as queues
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from bestofn.service.api.webhooks import NotReached, WebhookSender
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.settings import Settings
from bestofn.service.core.webhooks import GIVE_UP_SECONDS, check_webhook, headers_of, is_public, pause
from bestofn.service.engine.fake import FAILS
from bestofn.service.media.codec import encode
from bestofn.service.queue import webhooks
from bestofn.service.queue.job_queue import Queue
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
API_PAGE = Path(__file__).parents[3] / "docs" / "reference" / "api.md"
SHORT = {"prompt": "a ring", "num_samples": 2, "num_inference_steps": 1}
LONG = {"prompt": "a star", "num_samples": 4096, "num_inference_steps": 100}
SERVE = """
import sys
from bestofn.service.api.server import serve
from bestofn.service.core.settings import load_settings

serve(load_settings(), lambda url: print(url, flush=True))
"""


class Call(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


class Receiver:
    """A server that notes what it gets, and answers with the next of `answers`, or 204."""

    def __init__(self, port: int = 0, certificate: Path | None = None) -> None:
        receiver = self
        self.calls: queues.Queue[Call] = queues.Queue()
        self.answers: list[tuple[int, dict[str, str]]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = receiver.answers.pop(0) if receiver.answers else (204, {})
                receiver.calls.put(Call(self.path, dict(self.headers.items()), body))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def next(self) -> Call:
        return self.calls.get(timeout=PATIENCE)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.close()


@pytest.fixture
def hooked(served: Any) -> Settings:
    """Settings of an API that signs, and may call this machine. Each test awaits the webhooks of its jobs."""
    update = {"webhook_secret": SECRET, "webhook_hosts": ("127.0.0.1", "hooks.test")}
    return Settings.model_validate(served.settings.model_dump() | update)


@pytest.fixture
def http(hooked: Settings, serving: Serving) -> Iterator[httpx.Client]:
    with serving(hooked) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as client:
        yield client


def submit(http: httpx.Client, body: Mapping[str, Any], url: str) -> str:
    answer = http.post("/generate", json={**body, "webhook": url}, headers={"Prefer": "respond-async"})
    assert answer.status_code in (200, 202), answer.text  # it may have ended already
    return str(answer.json()["id"])


def documented_check() -> Callable[[str, Mapping[str, str], bytes], bool]:
    """The function of the documentation that checks a signature."""
    (code,) = re.findall(r"^```py\n(.*?)^```$", API_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    (function,) = (node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace[function.name]  # type: ignore[no-any-return]


def test_each_end_of_a_job_is_an_event_whose_signature_holds(http: httpx.Client, receiver: Receiver) -> None:
    check = documented_check()
    done = submit(http, SHORT, f"{receiver.url}/done?token=a%20b")
    call = receiver.next()
    assert (call.path, call.headers["webhook-id"]) == ("/hook/done?token=a%20b", f"msg_{done}")
    assert abs(int(call.headers["webhook-timestamp"]) - time.time()) < 300
    assert check(SECRET, call.headers, call.body)
    assert not check(SECRET, call.headers, call.body + b" ")
    assert not check("whsec_" + base64.b64encode(bytes(32)).decode(), call.headers, call.body)
    old = {**call.headers, "webhook-timestamp": str(int(time.time()) - 3600)}
    assert not check(SECRET, {**call.headers, **headers_of(SECRET, f"msg_{done}", int(time.time()) - 3600, b"")}, b"")
    assert not check(SECRET, old, call.body)
    result = http.get(f"/jobs/{done}").json()
    event = call.event
    assert (event["type"], event["data"]["id"], event["data"]["status"]) == ("job.succeeded", done, "succeeded")
    assert event["data"]["images"] == result["images"]
    assert http.get(event["data"]["url"]).json() == result
    assert "a ring" not in call.body.decode()

    failed = submit(http, SHORT | {"prompt": FAILS}, receiver.url)
    event = receiver.next().event
    assert (event["type"], event["data"]["id"]) == ("job.failed", failed)
    assert "the prompt asked for it" in event["data"]["error"]
    canceled = submit(http, LONG, receiver.url)
    http.delete(f"/jobs/{canceled}")
    event = receiver.next().event
    assert (event["type"], event["data"]["id"], event["data"]["images"]) == ("job.canceled", canceled, [])


def test_a_job_under_v1_has_one_too(http: httpx.Client, receiver: Receiver) -> None:
    answer = http.post("/v1/images/generations", json={**SHORT, "webhook": receiver.url})
    assert receiver.next().event["data"]["id"] == answer.json()["job"]
    refused = http.post("/v1/images/generations", json={**SHORT, "webhook": "http://10.0.0.1/"}).json()["error"]
    assert refused["param"] == "webhook"


def test_a_job_of_sent_images_has_one(http: httpx.Client, receiver: Receiver) -> None:
    files = [("images", (f"{colour}.png", encode(np.full((32, 32, 3), colour, np.uint8), "png"))) for colour in (0, 99)]
    answer = http.post("/rank", data={"prompt": "p", "webhook": receiver.url}, files=files)
    assert answer.status_code == 200, answer.text
    event = receiver.next().event
    assert (event["data"]["id"], event["type"]) == (answer.json()["id"], "job.succeeded")
    assert [image["name"] for image in event["data"]["images"]] == [answer.json()["images"][0]["name"]]
    refused = http.post("/rank", data={"prompt": "p", "webhook": "http://10.0.0.1/"}, files=files)
    assert (refused.status_code, refused.json()["field"]) == (422, "webhook")


def test_the_images_of_an_event_need_no_key(hooked: Settings, serving: Serving, keys: Any, receiver: Receiver) -> None:
    keyed = hooked.model_copy(update=keys("sesame"))
    with serving(keyed) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as client:
        client.headers["Authorization"] = "Bearer sesame"
        submit(client, SHORT, receiver.url)
        (image,) = receiver.next().event["data"]["images"]
        assert httpx.get(f"{api.url}{image['url']}", timeout=PATIENCE).headers["content-type"] == "image/png"


def test_a_receiver_that_is_down_gets_it_once_it_is_up(http: httpx.Client) -> None:
    down = Receiver()
    down.close()
    before = attempts(http, "retried")
    job = submit(http, SHORT, down.url)
    until(lambda: http.get(f"/jobs/{job}").json()["status"] == "succeeded")
    until(lambda: attempts(http, "retried") > before)
    up = Receiver(down.port)
    call = up.next()
    up.close()
    assert call.event["data"]["id"] == job


def attempts(http: httpx.Client, outcome: str) -> float:
    found = re.search(rf'bestofn_webhooks_total\{{outcome="{outcome}"\}} (\S+)', http.get("/metrics").text)
    return 0.0 if found is None else float(found.group(1))


def test_webhook_is_sent_again_with_the_same_id_and_body_until_2xx(http: httpx.Client, receiver: Receiver) -> None:
    other = Receiver()
    receiver.answers = [(500, {}), (302, {"Location": other.url}), (200, {})]
    submit(http, SHORT, receiver.url)
    first, second, third = (receiver.next() for _ in range(3))
    assert first.body == second.body == third.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == third.headers["webhook-id"]
    assert documented_check()(SECRET, third.headers, third.body)
    submit(http, SHORT, receiver.url)
    assert receiver.next().headers["webhook-id"] != first.headers["webhook-id"]
    assert (receiver.calls.empty(), other.calls.empty()) == (True, True)  # no redirect was followed
    other.close()


async def left(queue: Queue) -> int:
    return int(await queue.redis.zcard(queue.keys("webhooks")))


@pytest.fixture
async def queue(hooked: Settings) -> AsyncIterator[Queue]:
    async with aclosing(await Queue.connect(hooked)) as opened:
        yield opened


async def test_a_receiver_that_is_gone_for_good_gets_no_more(
    http: httpx.Client, receiver: Receiver, queue: Queue
) -> None:
    receiver.answers = [(410, {})]
    job = submit(http, SHORT, receiver.url)
    receiver.next()
    key = queue.keys("webhook", job)
    while await queue.redis.exists(key):
        time.sleep(0.02)
    assert receiver.calls.empty()


def test_several_processes_send_each_once(hooked: Settings, serving: Serving, receiver: Receiver) -> None:
    with serving(hooked) as one, serving(hooked) as two:
        sent = set()
        for api in (one, two) * 6:
            with httpx.Client(base_url=api.url, timeout=PATIENCE) as client:
                sent.add(submit(client, SHORT, receiver.url))
        got = [receiver.next().event["data"]["id"] for _ in sent]
    assert sorted(got) == sorted(sent)
    assert receiver.calls.empty()


@contextlib.contextmanager
def api_process(settings: Settings) -> Iterator[SimpleNamespace]:
    """An API in a process of its own, which is killed at the end."""
    environment = {
        **os.environ,
        "BESTOFN_DATA_DIR": str(settings.data_dir),
        "REDIS_URL": "",
        "BESTOFN_NAMESPACE": settings.namespace,
        "BESTOFN_PORT": "0",
        "BESTOFN_WEBHOOK_SECRET": SECRET,
        "BESTOFN_WEBHOOK_HOSTS": json.dumps(settings.webhook_hosts),
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield SimpleNamespace(url=process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_a_kill_of_the_api_loses_no_webhook(
    idle: Settings, receiver: Receiver, open_lane: Callable[..., Any], finish: Callable[..., Any]
) -> None:
    """One process dies before the job's end, another one after it has claimed the webhook."""
    settings = idle.model_copy(update={"webhook_hosts": ("127.0.0.1",)})
    with api_process(settings) as first, httpx.Client(base_url=first.url, timeout=PATIENCE) as client:
        job = submit(client, SHORT, receiver.url)
    async with aclosing(await Queue.connect(settings)) as queue:
        lane = await open_lane(queue)
        (heat,) = await lane.claim(1, 0)
        await lane.complete(heat, finish(heat.heat))
        (claimed,) = await webhooks.claim(queue, 9, 0.2)
        assert (claimed.job, claimed.status, claimed.attempt) == (job, "succeeded", 1)
        with api_process(settings):
            call = receiver.next()
            assert (call.event["data"]["id"], call.headers["webhook-id"]) == (job, f"msg_{job}")
            assert len(call.event["data"]["images"]) == 1
            while await left(queue):
                await asyncio.sleep(0.02)
    assert receiver.calls.empty()


async def test_a_late_attempt_settles_nothing(idle: Settings) -> None:
    async with aclosing(await Queue.connect(idle)) as queue:
        await settle_late(queue)


async def settle_late(queue: Queue) -> None:
    await queue.redis.hset(queue.keys("webhook", "j"), mapping={"url": "u", "status": "failed", "ended": 0})
    await queue.redis.zadd(queue.keys("webhooks"), {"j": 0})
    (first,) = await webhooks.claim(queue, 1, 0.0)
    (second,) = await webhooks.claim(queue, 1, 60.0)
    assert (first.attempt, second.attempt, await webhooks.claim(queue, 1, 60.0)) == (1, 2, [])
    await webhooks.settle(queue, first, None, b"b")
    assert await left(queue) == 1
    await webhooks.settle(queue, second, 0.0, b"b")
    (third,) = await webhooks.claim(queue, 1, 60.0)
    assert (third.attempt, third.body) == (3, b"b")
    await webhooks.settle(queue, third, None, b"b")
    assert (await left(queue), await queue.redis.exists(queue.keys("webhook", "j"))) == (0, 0)


def test_a_server_without_a_secret_refuses_and_names_the_setting(served: Any) -> None:
    body = {**SHORT, "webhook": "https://example.net/hook"}
    answer = httpx.post(f"{served.url}/generate", json=body, timeout=PATIENCE)
    assert (answer.status_code, answer.json()["field"]) == (422, "webhook")
    assert "BESTOFN_WEBHOOK_SECRET" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.net/hook", "must be https"),
        ("https://127.0.0.2/hook", "not a public address"),
        ("https://[::1]/hook", "not a public address"),
        ("https://[::ffff:10.0.0.1]/", "not a public address"),
        ("https://169.254.169.254/latest", "not a public address"),
        ("https://localhost/hook", "not a public address"),
        ("https://user:password@example.net/", "must be an address"),
        ("https://example.net\\@10.0.0.1/", "must be an address"),
        ("https://example.net:99999/", "must be an address"),
        ("https://example.net/#part", "must be an address"),
        ("https://exämple.net/", "must be an address"),
        ("ftp://example.net/", "must be an address"),
        ("https:///hook", "must be an address"),
        ("https://example.net/\nX: 1", "must be an address"),
        ("https://example.net/" + "a" * 2000, "must be an address"),
    ],
)
def test_addresses_that_a_job_may_not_have(url: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        check_webhook(url, Settings(webhook_secret=SECRET))
    assert caught.value.field == "webhook"


def test_hosts_that_the_operator_allows() -> None:
    settings = Settings(webhook_secret=SECRET, webhook_hosts=("10.1.0.0/16", "Hooks.internal", "::1"))
    for url in ("http://10.1.2.3:80/", "http://hooks.INTERNAL/a?b=c", "https://[::1]:9/", "https://example.net"):
        check_webhook(url, settings)
    for url in ("http://10.2.0.1/", "http://other.internal/"):
        with pytest.raises(InvalidRequest):
            check_webhook(url, settings)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("169.254.169.254", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("::", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def sender(hosts: tuple[str, ...], resolve: Any) -> WebhookSender:
    context: Any = SimpleNamespace(settings=Settings(webhook_hosts=hosts))
    return WebhookSender(context, SECRET, resolve)


async def test_a_name_that_leads_inside_is_not_called(receiver: Receiver) -> None:
    """The look-up of the system, and one that changes its mind: the checked address is the one that is called."""
    async with httpx.AsyncClient(trust_env=False) as client:
        for url in (f"http://localhost:{receiver.port}/", f"http://2130706433:{receiver.port}/"):
            with pytest.raises(NotReached, match="not public"):
                await sender((), None).send(client, url, b"{}", {})
        asked = []

        async def rebinding(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["10.0.0.1"] if len(asked) > 1 else ["127.0.0.1"]

        answer = await sender(("127.0.0.0/8",), rebinding).send(
            client, f"http://rebind.example:{receiver.port}/a", b"{}", {}
        )
        with pytest.raises(NotReached, match="not public"):
            await sender(("127.0.0.0/8",), rebinding).send(client, f"http://rebind.example:{receiver.port}/a", b"", {})
    assert (answer.status_code, asked) == (204, ["rebind.example"] * 2)
    call = receiver.next()
    assert (call.path, call.headers["Host"]) == ("/a", f"rebind.example:{receiver.port}")
    assert receiver.calls.empty()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
async def test_the_certificate_is_that_of_the_name(tmp_path: Path) -> None:
    file = tmp_path / "both.pem"
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hooks.test"],
            *["-addext", "subjectAltName=DNS:hooks.test"],
            *["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "crt")],
        ],
        check=True,
        capture_output=True,
    )
    file.write_text((tmp_path / "key").read_text() + (tmp_path / "crt").read_text())
    secure = Receiver(certificate=file)

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    trusted = ssl.create_default_context(cafile=str(tmp_path / "crt"))
    try:
        async with httpx.AsyncClient(verify=trusted, trust_env=False) as client:
            calls = sender(("127.0.0.1",), here)
            answer = await calls.send(client, f"https://hooks.test:{secure.port}/", b"{}", {})
            assert answer.status_code == 204
            with pytest.raises(NotReached, match="certificate"):
                await calls.send(client, f"https://other.test:{secure.port}/", b"{}", {})
    finally:
        secure.close()


@pytest.mark.parametrize(
    ("begin", "repeated", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b"x" * 4096, 200),
        (b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 1000 + b"\r\n", "ProtocolError"),
        (b"", b"", "no answer within"),
    ],
    ids=["endless body", "endless headers", "silence"],
)
async def test_an_answer_is_bounded_in_size_and_time(
    begin: bytes, repeated: bytes, expected: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not begin:
        monkeypatch.setattr("bestofn.service.api.webhooks.ATTEMPT_SECONDS", 0.2)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(begin)
            while repeated:
                writer.write(repeated)
                await writer.drain()
            await reader.read()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    async with httpx.AsyncClient(trust_env=False) as client:
        sending = sender(("127.0.0.1",), None).send(client, url, b"{}", {})
        if isinstance(expected, int):
            assert (await sending).status_code == expected
        else:
            with pytest.raises(NotReached, match=expected):
                await sending
    listening.close()


def test_pauses_double_up_to_an_hour_for_a_day() -> None:
    pauses, age = [], 0.0
    while (seconds := pause(len(pauses) + 1, age, {})) is not None:
        pauses.append(seconds)
        age += seconds
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(pauses) == 3600.0
    assert GIVE_UP_SECONDS - 3600 <= age < GIVE_UP_SECONDS
    assert pause(1, 0.0, {"retry-after": "120"}) == 120.0
    assert pause(1, 0.0, {"retry-after": "99999"}) == 3600.0


@pytest.mark.parametrize("secret", ["secret", "whsec_c2hvcnQ=", "whsec_" + "!" * 40, SECRET.removeprefix("whsec_")])
def test_a_secret_is_one_of_standard_webhooks(secret: str) -> None:
    with pytest.raises(ValidationError, match="webhook_secret"):
        Settings(webhook_secret=secret)
