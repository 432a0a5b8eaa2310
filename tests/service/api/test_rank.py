"""POST /rank: images that exist are judged through the queue, and answered as a job of drawn candidates is."""

import base64
import hashlib
import io
import json
import socket
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from PIL import Image

from bestofn.judge.bracket import knockout
from bestofn.judge.verdict import rank as ranked
from bestofn.service.api.request_bodies import AT_ONCE, read_upload
from bestofn.service.core import rank_request
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import fake_verdict
from tests.waiting import PATIENCE

Serving = Callable[[Settings], AbstractContextManager[Any]]
PROMPT = "a red star"
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "cyan")
ASYNC = {"Prefer": "respond-async"}


def picture(colour: str, format: str = "PNG", size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format)
    return file.getvalue()


PICTURES = [picture(colour, ("PNG", "WEBP", "JPEG")[i % 3], (48 + i, 32)) for i, colour in enumerate(COLOURS)]
RED = PICTURES[0]


def url_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def rank(url: str, pictures: Sequence[bytes] = PICTURES, headers: Any = None, **fields: Any) -> httpx.Response:
    files = [("images", (f"{number}.png", data)) for number, data in enumerate(pictures)]
    return httpx.post(f"{url}/rank", data={"prompt": PROMPT} | fields, files=files, headers=headers, timeout=PATIENCE)


def events_of(text: str) -> list[tuple[str, Any]]:
    fields = [dict(line.split(": ", 1) for line in event.splitlines() if ": " in line) for event in text.split("\n\n")]
    return [(one["event"], json.loads(one["data"])) for one in fields if "event" in one]


def expected(pictures: Sequence[bytes]) -> tuple[list[float], list[int]]:
    """Logits of yes that the fake judge gives, and the ranks of the pictures."""
    seeds = [int.from_bytes(hashlib.sha256(data).digest()[:6]) for data in pictures]
    verdicts = [fake_verdict(PROMPT, seed) for seed in seeds]
    order = ranked(verdicts)
    return [verdict.yes_logit for verdict in verdicts], [order.index(i) + 1 for i in range(len(pictures))]


def test_images_are_ranked_as_candidates_are(served: Any) -> None:
    answer = rank(served.url, headers={"Accept": "text/event-stream"}, top_k="2", thumbnails="true")
    events = events_of(answer.raise_for_status().text)
    kinds = [kind for kind, _ in events]
    assert (kinds.count("candidate"), kinds.count("match"), kinds[-1]) == (7, 7, "result")
    job = httpx.get(served.url + answer.headers["location"]).json()
    assert events[-1][1] == job
    logits, ranks = expected(PICTURES)
    assert [one["verdict"]["yes_logit"] for one in job["candidates"]] == logits
    assert [one["rank"] for one in job["candidates"]] == ranks
    assert [(one["name"], one["seed"]) for one in job["candidates"]] == [(f"{i}.png", None) for i in range(7)]
    order = sorted(range(7), key=lambda i: ranks[i])
    matches = knockout(range(7), order).to_json()["rounds"]
    assert job["bracket"] == matches
    assert {name for name in job["parameters"] if "step" in name or "seed" in name} == set()
    assert [image["candidate"] for image in job["images"]] == order[:2]
    for image in job["images"]:
        got = httpx.get(served.url + image["url"])
        assert got.content == PICTURES[image["candidate"]]
        assert got.headers["content-type"] == f"image/{('png', 'webp', 'jpeg')[image['candidate'] % 3]}"
        assert "x-bestofn-seed" not in got.headers
    small = httpx.get(f"{served.url}/jobs/{job['id']}/thumbnails/3").content
    assert Image.open(io.BytesIO(small)).size == (51, 32)
    usage = job["usage"]
    assert (usage["candidates"], usage["judge_forwards"], usage["transformer_forwards"]) == (7, 7, 0)


def test_data_urls_are_the_same_request_as_a_form(served: Any) -> None:
    key = {"Idempotency-Key": "rank-1"}
    body = {"prompt": PROMPT, "images": [url_of(data) for data in PICTURES], "top_k": None}
    first = httpx.post(f"{served.url}/rank", json=body, headers=key, timeout=PATIENCE)
    again = rank(served.url, headers=key, rule="margin")
    assert (first.status_code, again.status_code, again.headers["idempotent-replayed"]) == (200, 200, "true")
    assert first.json()["id"] == again.json()["id"]
    assert "name" not in first.json()["candidates"][0]
    other = rank(served.url, [*PICTURES[1:], RED], headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims a size, and would take a gigabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


REFUSED: Mapping[str, Any] = {
    "one": ([RED], "images must be 2 to 64 files, got 1; send at least one more"),
    "65": ([RED] * 65, "images must be 2 to 64 files, got 65; send the rest in another request"),
    "no picture": ([RED, b"GIF89a what else"], "images[1] (1.png): not a readable PNG, WebP or JPEG (16 bytes)"),
    "cut short": ([RED, picture("blue", "JPEG")[:-40]], "images[1] (1.png): not a readable PNG, WebP or JPEG"),
    "empty": ([b"", RED], "images[0] (0.png) is an empty file; leave it out"),
    "bomb": (
        [RED, RED, bomb(20_000, 20_000)],
        "images[2] (2.png)",
        "400000000 pixels; at most 16 Mi are decoded: shrink it",
    ),
    "large": ([bomb(5000, 5000), RED], "images[0] (0.png)", "5000x5000 pixels; at most 16 Mi are decoded: shrink it"),
    "bombs": ([bomb(4096, 4096)] * 9, "images have 150,994,944 pixels together, and may have 134,217,728"),
    "one too large": (
        [RED, bytes(rank_request.MAX_IMAGE_BYTES + 1)],
        "images[1] (1.png) has 16,777,217 bytes, and an image may have 16,777,216; shrink it",
    ),
    "all too large": ([RED + bytes(12 * 2**20)] * 3, "bytes together, and may have 33,554,432; send fewer or smaller"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_beyond_a_limit_are_refused_by_name(served: Any, name: str) -> None:
    pictures, *reasons = REFUSED[name]
    problem = rank(served.url, pictures).json()
    assert (problem["status"], problem["code"], problem["field"]) == (422, "invalid_request", "images")
    assert all(reason in problem["detail"] for reason in reasons), problem["detail"]


def test_other_faults_of_a_request_name_their_field(served: Any) -> None:
    def refusal(**sent: Any) -> tuple[int, str | None, str]:
        problem = httpx.post(f"{served.url}/rank", timeout=PATIENCE, **sent).json()
        return problem["status"], problem.get("field"), problem["detail"]

    pair = [url_of(RED)] * 2
    two = [("images", ("a.png", RED))] * 2
    for sent, status, field, reason in (
        ({"json": {"prompt": PROMPT, "image": pair}}, 422, "images", "images is required"),
        ({"json": {"prompt": PROMPT, "images": pair, "seed": 7}}, 422, "seed", "seed is not a field"),
        ({"json": {"prompt": "  ", "images": pair}}, 422, "prompt", "prompt is blank"),
        ({"json": {"prompt": PROMPT, "images": pair, "top_k": 3}}, 422, "top_k", "at most 2 (the number of images)"),
        (
            {"json": {"prompt": PROMPT, "images": ["https://x.example/a.png"] * 2}},
            422,
            "images",
            "fetches no addresses",
        ),
        ({"json": {"prompt": PROMPT, "images": pair, "judge": "no"}}, 422, "judge", "choose from fake-judge"),
        ({"files": two, "data": {"prompt": PROMPT, "top_k": "two"}}, 422, "top_k", "top_k is not a JSON value"),
        ({"files": two, "data": {"promt": PROMPT}}, 422, "prompt", "promt is not a field; did you mean prompt?"),
        (
            {"files": [("image", ("a.png", RED))] * 2, "data": {"prompt": PROMPT}},
            422,
            "image",
            "image is not a field; use images",
        ),
        ({"files": two, "data": {"prompt": [PROMPT] * 2}}, 422, "prompt", "prompt comes twice; send it once"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type", "multipart/form-data"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 422, None, "the body is not valid JSON"),
        ({"content": b"[" * 99_999, "headers": {"Content-Type": "application/json"}}, 422, None, "too deeply nested"),
    ):
        got = refusal(**sent)
        assert got[0] == status, got
        assert reason in got[2], got
        assert field in (got[1], None) or field in got[2], got
    accept = httpx.post(f"{served.url}/rank", files=two, data={"prompt": PROMPT}, headers={"Accept": "image/png"})
    assert accept.status_code == 406


def test_bodies_longer_than_the_limit_are_refused(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestofn.service.api.request_bodies.MAX_BODY_BYTES", 1000)  # of the API, which is a thread
    answer = rank(served.url, PICTURES * 2)
    assert (answer.status_code, "send fewer or smaller images" in answer.json()["detail"]) == (413, True)


def test_a_body_that_does_not_come_is_given_up(
    idle: Settings, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is 408; a caller who hangs up meanwhile is no mistake of the server, and holds no turn."""
    head = b"POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    with serving(idle) as api:
        place = urlsplit(api.url).hostname, urlsplit(api.url).port
        for _ in range(AT_ONCE + 1):
            with socket.create_connection(place) as gone:
                gone.sendall(head)
        monkeypatch.setattr("bestofn.service.api.routes.generate.UPLOAD_SECONDS", 0.01)  # of the API, which is a thread
        with socket.create_connection(place) as slow:
            slow.sendall(head)
            answer = slow.makefile("rb").readline()
    assert answer == b"HTTP/1.1 408 Request Timeout\r\n"


def test_forms_are_read_byte_by_byte() -> None:
    """Contents with line ends and dashes, names with signs and folders, and forms that are cut short."""
    content = b"\r\n--x\r\n\r\n--\r\n" + RED + b"\r\n"
    head = 'Content-Disposition: form-data; name="images"; filename="{}"\r\nContent-Type: image/png\r\n\r\n'
    parts = [
        head.format(name).encode() + RED for name in ("höhe.png", "C:\\\\pictures\\\\a.png", "\x07.png", "a%22b.png")
    ]
    parts.append(b'Content-Disposition: form-data; name="prompt"\r\n\r\n' + content.replace(RED, b"z"))
    body = b"".join(b"--bound\r\n" + part + b"\r\n" for part in parts) + b"--bound--\r\n"
    upload = read_upload('multipart/form-data; boundary="bound"', body)
    assert [image.name for image in upload.images] == ["höhe.png", "a.png", "", 'a"b.png']
    assert upload.files == (RED,) * 4
    assert upload.options.prompt == content.replace(RED, b"z").decode()
    for fault, sent in {
        "cut short": body[:-12],
        "no boundary": b"",
        "has no name": body.replace(b"name=", b"nam="),
    }.items():
        kind = "multipart/form-data" + ("" if fault == "no boundary" else "; boundary=bound")
        with pytest.raises(InvalidRequest, match=fault):
            read_upload(kind, sent)
    with pytest.raises(RequestValidationError):
        read_upload("application/json", b"[]")


def test_an_animation_is_judged_by_its_first_frame_with_a_warning(served: Any) -> None:
    film = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(film, "WEBP", save_all=True, append_images=frames[1:])
    job = rank(served.url, [RED, film.getvalue()]).json()
    assert job["warnings"] == ["images[1] (1.png) is an animation of 2 frames, of which the first is read"]


def test_keys_see_their_own_images_and_pay_for_them(
    idle: Settings, serving: Serving, keys: Callable[..., dict[str, Path]]
) -> None:
    room = sum(map(len, PICTURES)) + 20_000  # for one job, its winner included, and not for two
    settings = idle.model_copy(update={**keys("ali", "bea"), "image_budget_bytes": room})
    with serving(settings) as api:
        ali, bea = ({"Authorization": f"Bearer {name}"} for name in ("ali", "bea"))
        padded = [data + bytes(1500) for data in PICTURES]  # bytes after an image's end are not read
        job = rank(api.url, padded, headers=ali | ASYNC).json()["id"]

        def held() -> int:
            status = httpx.get(f"{api.url}/status", headers=ali).json()
            return int(status["caller"]["image_bytes"])

        assert held() >= sum(map(len, padded))
        refused = rank(api.url, padded, headers=ali | ASYNC).json()
        assert (refused["status"], refused["code"]) == (429, "overloaded")
        for path in (f"/jobs/{job}", f"/jobs/{job}/images/1", f"/jobs/{job}/events"):
            assert httpx.get(api.url + path, headers=bea).status_code == 404
        assert httpx.delete(f"{api.url}/jobs/{job}", headers=bea).status_code == 404
        assert rank(api.url).status_code == 401
        ended = httpx.delete(f"{api.url}/jobs/{job}", headers=ali).json()
        assert (ended["status"], held()) == ("canceled", 0)
