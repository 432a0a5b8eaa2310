"""Accept, Prefer and Host: what the headers of a call mean, and what JSON answers it."""

from collections.abc import Callable

import pytest
from starlette.datastructures import Headers

from bestofn.judge.verdict import Verdict
from bestofn.service.api.access import check_host
from bestofn.service.api.content_negotiation import image_format, read_accept, read_prefer
from bestofn.service.api.responses import json_answer
from bestofn.service.core.errors import HostNotAllowed
from bestofn.service.core.jobs import Candidate, HeatOutcome, ImageFormat, JobSpec, JobStatus, Usage
from bestofn.service.core.results import assemble
from bestofn.service.core.settings import Settings
from bestofn.service.host.loopback import is_loopback

ACCEPT = {
    None: "json",
    "*/*": "json",
    "application/json": "json",
    "image/png": "image",
    "image/webp, */*": "image",
    "*/*, image/png": "image",
    "image/png;q=0.5, application/json": "json",
    "text/html, image/avif, image/webp;q=0.9, */*;q=0.8": "image",
    "text/event-stream": "events",
    "text/event-stream, application/json;q=0.9": "events",
    "text/html": "nothing",
    "image/png;q=0": "nothing",
    "image/gif, audio/*": "nothing",
    ";;,,q=": "nothing",
    "image/png;q=much": "image",
}


@pytest.mark.parametrize(("header", "first"), ACCEPT.items(), ids=str)
def test_accept(header: str | None, first: str) -> None:
    accepted = read_accept(header)
    assert accepted.image_first == (first == "image")
    assert accepted.events_first == (first == "events")
    assert (accepted.json or bool(accepted.images)) == (first != "nothing" and header != "text/event-stream")


@pytest.mark.parametrize(
    ("header", "named", "expected"),
    [
        ("image/webp", None, "webp"),
        ("image/jpeg, image/png", None, "jpeg"),
        ("image/jpeg, image/png", "png", "png"),
        ("image/*", None, "png"),
        ("image/*", "webp", "webp"),
        ("image/jpeg", "png", "jpeg"),
        ("image/jpeg", "webp", None),
    ],
)
def test_the_image_format_follows_accept_unless_the_body_contradicts(
    header: str, named: ImageFormat | None, expected: str | None
) -> None:
    assert image_format(read_accept(header), named, "png") == expected


@pytest.mark.parametrize(
    ("header", "seconds", "applied"),
    [
        (None, 120, None),
        ("respond-async", 0, "respond-async"),
        ("wait=5", 5, "wait=5"),
        ("respond-async, wait=5", 5, "wait=5"),
        ("WAIT = 900", 120, "wait=120"),
        ("wait=0", 0, "wait=0"),
        ("wait=-1", 120, None),
        ("wait=soon, handling=lenient", 120, None),
        ("wait=99999999999999999999", 120, None),
    ],
)
def test_prefer(header: str | None, seconds: float, applied: str | None) -> None:
    preference = read_prefer(header, 120)
    assert (preference.seconds, preference.applied) == (seconds, applied)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"])
def test_loopback_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "", "example.com"])
def test_other_names(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {},
        {"host": "[::1"},
        {"host": "localhost:8000", "origin": "http://evil.example"},
        {"host": "localhost:8000", "origin": "http://localhost:3000"},
        {"host": "localhost:8000", "origin": "null"},
    ],
)
def test_pages_of_others_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(HostNotAllowed):
        check_host(Headers(headers), Settings())


def test_own_pages_and_programs_are_not() -> None:
    check_host(Headers({"host": "localhost:8000"}), Settings())
    check_host(Headers({"host": "[::1]:8000", "origin": "http://[::1]:8000"}), Settings())


def test_json_of_a_large_page_is_that_of_the_whole_model(make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec(num_samples=600, prompt='"candidates":[] \\"candidates":[]')
    candidates = tuple(Candidate(i, 7 + i, Verdict("yes", float(i % 7), 0.0)) for i in range(600))
    result = assemble(spec, JobStatus.SUCCEEDED, [HeatOutcome(0, candidates, {}, Usage(600))])
    assert json_answer("", result).body == result.model_dump_json().encode()
