"""What a caller asks for in headers: the kind of answer (Accept) and how long to wait for it (Prefer)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from bestofn.service.core.jobs import ImageFormat

FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
EVENTS = "text/event-stream"
_IMAGES: Mapping[str, ImageFormat | None] = {f"image/{name}": name for name in FORMATS} | {"image/*": None}
OFFERS = ", ".join(("application/json", *(f"image/{name}" for name in FORMATS), EVENTS))  # for errors


@dataclass(frozen=True, slots=True)
class Accepted:
    """Media types that a caller accepts among ours, most wanted first; `None` in `images`: any format."""

    json: bool
    images: tuple[ImageFormat | None, ...]
    image_first: bool
    events_first: bool


def read_accept(header: str | None) -> Accepted:
    """Read an Accept header (RFC 9110 section 12.5.1); no header accepts everything, and gets JSON.

    Among equal weights a named type goes before a wildcard, then the order of writing decides. `*/*` means JSON, since
    clients send it when they have no wish.
    """
    wanted: list[tuple[float, int, int, str]] = []
    for position, part in enumerate((header or "*/*").lower().split(",")):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((_weight(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        if media and weight > 0:
            wanted.append((-weight, media.count("*"), position, media))
    images: list[ImageFormat | None] = []
    first: str | None = None
    json = False
    for *_, media in sorted(wanted):
        if media in ("application/json", "application/*", "*/*"):
            json, kind = True, "json"
        elif media in _IMAGES:
            images.append(_IMAGES[media])
            kind = "image"
        elif media == EVENTS:
            kind = "events"
        else:
            continue
        first = first or kind
    return Accepted(json, tuple(images), first == "image", first == "events")


def image_format(accepted: Accepted, named: ImageFormat | None, default: ImageFormat) -> ImageFormat | None:
    """The image format for a call for bytes: the body's, or Accept's if it names none; None if they contradict.

    A body that names the default contradicts nothing: generated clients send every default.
    """
    if named is not None and (named in accepted.images or None in accepted.images):
        return named
    if named not in (None, default):
        return None
    return accepted.images[0] or default


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 1.0


@dataclass(frozen=True, slots=True)
class Preference:
    """What a caller prefers.

    Attributes:
        seconds: how long to wait.
        applied: the Preference-Applied header that says so; None if no preference was given.
        cancel_on_disconnect: whether hanging up cancels the job; otherwise it goes on.
    """

    seconds: float
    applied: str | None
    cancel_on_disconnect: bool = False


def read_prefer(header: str | None, longest: float) -> Preference:
    """Read a Prefer header (RFC 7240): `respond-async` does not wait, `wait=n` waits n seconds, at most `longest`.

    With both, the wait comes first; `cancel-on-disconnect` goes with a wait. Unknown preferences are ignored, as the
    RFC asks.
    """
    parts = [part.strip() for part in re.split("[,;]", (header or "").lower())]
    waits = [part.partition("=")[2].strip().strip('"') for part in parts if re.match(r"wait\s*=", part)]
    cancels = "cancel-on-disconnect" in parts
    applied = ["cancel-on-disconnect"] if cancels else []
    if waits and waits[0].isdecimal() and len(waits[0]) < 10:
        seconds = min(float(waits[0]), longest)
        return Preference(seconds, ", ".join([f"wait={seconds:g}", *applied]), cancels)
    if "respond-async" in parts:
        return Preference(0.0, "respond-async")
    return Preference(longest, ", ".join(applied) or None, cancels)
