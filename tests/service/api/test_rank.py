"""POST /rank: images that exist are judged through the queue, and answered as a job of drawn candidates is."""

import base64
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from PIL import Image

from bestofn.judge.bracket import knockout
from bestofn.service.api.uploads import read_upload
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import fake_verdict
from tests.waiting import PATIENCE, until


def picture(colour: str, format: str = "PNG", size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format)
    return file.getvalue()


COLOURS = ("red", "green", "blue", "white", "black", "yellow", "cyan")
FORMATS = ("PNG", "WEBP", "JPEG")
PICTURES = [picture(colour, FORMATS[i % 3], (48 + i, 32)) for i, colour in enumerate(COLOURS)]


def form(pictures: Sequence[bytes], name: str = "images") -> list[tuple[str, tuple[str, bytes]]]:
    return [(name, (f"{number}.png", data)) for number, data in enumerate(pictures)]


def url_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def rank(url: str, pictures: Sequence[bytes] = PICTURES, headers: Any = None, **fields: Any) -> httpx.Response:
    data = {"prompt": "a red star"} | fields
    return httpx.post(f"{url}/rank", data=data, files=form(pictures), headers=headers, timeout=PATIENCE)


def test_images_are_ranked_as_candidates_are(served: Any) -> None:
    answer = rank(served.url, top_k=2, thumbnails="true")
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "succeeded"
    print(job)
