"""What schemathesis has no check for: every refusal says what to change. And Accept, which OpenAPI keeps to itself."""

import zlib
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, DeserializationContext, HookContext, Response

ACCEPT = (
    "image/png",
    "image/*;q=0.5, application/json;q=0.4",
    "image/webp",
    "text/event-stream",
    "video/mp4",
    "*/*;q=x",
    ",;q=;,\xff",
)
TEXT = {"type": "string"}
EVENT = {"type": "object", "properties": {"data": TEXT, "event": TEXT, "id": TEXT, "retry": {"type": "integer"}}}
TROUBLE = ("unavailable", "wait_timeout", "deadline_passed")


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Half of the submissions want something else than JSON."""
    if case.path == "/generate" and case.method == "POST":
        chosen = zlib.crc32(repr(case.body).encode(errors="replace")) % (2 * len(ACCEPT))
        if chosen < len(ACCEPT) and case.headers is not None:
            case.headers["Accept"] = ACCEPT[chosen]


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Images are described as binary strings, and `image` below makes something else of them.

    Streams are described as text, and schemathesis takes a schema of OpenAPI before 3.2 for that of each event.
    """
    for methods in raw_schema["paths"].values():
        for operation in methods.values():
            for answer in operation["responses"].values():
                for media, content in answer.get("content", {}).items():
                    if media.startswith("image/"):
                        content.pop("schema", None)
                    elif media == "text/event-stream":
                        content["schema"] = EVENT


@schemathesis.deserializer("image/png", "image/webp", "image/jpeg")
def image(context: DeserializationContext, response: Response) -> dict[str, Any]:
    """What a link needs to go on from an image."""
    return {"id": next(iter(response.headers.get("x-bestofn-job", ())), None)}


@schemathesis.check
def refusal_says_what_to_change(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """A problem document that names the field at fault, in few words; a 5xx only of a kind that passes by itself."""
    status = response.status_code
    if status < 400:
        return
    media = response.headers["content-type"][0]
    answer = response.json()
    if case.path.startswith("/v1/"):
        assert media == "application/json", media
        code, field, detail = (answer["error"][name] for name in ("code", "param", "message"))
    else:
        assert media == "application/problem+json", media
        assert answer["status"] == status
        code, field, detail = answer["code"], answer.get("field"), answer["detail"]
    assert len(detail) < 4000, len(detail)
    assert status < 500 or code in TROUBLE, code
    if status in (429, 503):
        assert {"retry-after", "retry-after-ms"} <= response.headers.keys()
    if code == "payload_too_large":
        assert any(character.isdigit() for character in detail), detail
    if code == "invalid_request" and "JSON" not in detail:
        assert field, detail
        assert field.isprintable()
