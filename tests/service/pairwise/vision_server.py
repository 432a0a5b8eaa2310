"""An OpenAI-compatible vision server on loopback that really looks: it decodes both images and scores them."""

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from tests.waiting import PATIENCE

KEY = "a key that it knows"
MODEL = "looker"
PROMPT = re.compile(r"made for this prompt:\n(.*)\n\nWhich image", re.DOTALL)


def brightness(prompt: str, image: Image.Image) -> float:
    """The mean of all channels: what the judge of most tests prefers."""
    return float(np.asarray(image).mean())


@dataclass
class Vision:
    """The server's state, which tests change while it runs.

    Attributes:
        url: its name as a judge.
        score: how well an image shows a prompt; the greater wins.
        mode: looks; first (names the first image, whatever it shows); garbage (no completion); rambles (no letter);
            nested, long and dripping (bodies that harm a reader without limits); null and thoughts (no letter);
            thinks (for 100 tokens before the letter); parts (content as a list).
        failures: so many calls are answered 500 first.
        pause: set while calls may be answered.
        tells: whether log-probabilities are told; None: asking for them is a 400.
        refuses: options that are a 400, and what that says.
        key: that callers must send; None: none is asked for.
        encoding: that answers claim to have; None: none.
        calls: what was asked: prompt, sizes of both images, headers.
    """

    url: str = ""
    score: Callable[[str, Image.Image], float] = brightness
    mode: str = "looks"
    failures: int = 0
    tells: bool | None = True
    refuses: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    encoding: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    pause: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any]:
        """Status and JSON of one call."""
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": {"message": "no such key"}}
        if body["model"] != MODEL:
            return 404, {"error": {"message": f"no model {body['model']}"}}
        with self.lock:
            self.failures -= 1
            if self.failures >= 0:
                return 500, {"error": {"message": "out of luck"}}
        if self.tells is None and "logprobs" in body:
            return 400, {"error": {"message": "logprobs is not supported"}}
        for name, said in self.refuses.items():
            if name in body:
                return 400, {"error": {"message": said}}
        assert (body.get("temperature", 0), len(body["messages"])) == (0, 1)
        content = body["messages"][0]["content"]
        texts = [part["text"] for part in content if part["type"] == "text"]
        images = [_decode(part["image_url"]["url"]) for part in content if part["type"] == "image_url"]
        found = PROMPT.search(texts[-1])
        assert found is not None
        self.calls.append({"prompt": found[1], "sizes": [image.size for image in images], "content": content})
        match self.mode:
            case "garbage":
                return 200, ["what?"]
            case "rambles":
                return 200, _completion("An image is worth a thousand words", None)
            case "first":
                return 200, _completion("A", None)
            case "null":
                return 200, _completion(None, None)
            case "thoughts":
                return 200, _completion("<think>The first image is", None, "length")
        first, second = (self.score(found[1], image) for image in images)
        letter = "A" if first >= second else "B"
        if self.mode == "thinks":
            if (body.get("max_tokens") or body["max_completion_tokens"]) < 100:
                return 200, _completion("<think>A", {"A": -0.1}, "length")
            return 200, _completion(f"<think>A is good, B is better</think>\n\n{letter}", {"A": -0.1})
        if self.mode == "parts":
            parts = [{"type": "thinking", "thinking": "A"}, {"type": "text", "text": letter}]
            return 200, _completion(parts, None)
        return 200, _completion(letter, None if not self.tells else {letter: -0.1, "BA"[letter == "B"]: -2.4})


def _decode(url: str) -> Image.Image:
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        return image.convert("RGB")


def _completion(text: Any, logprobs: dict[str, float] | None, reason: str = "stop") -> dict[str, Any]:
    top = [{"token": token, "logprob": value} for token, value in (logprobs or {}).items()]
    told = {"content": [{"token": text, "top_logprobs": top}]} if logprobs else None
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "logprobs": told, "finish_reason": reason}]}


@contextmanager
def vision_server() -> Iterator[Vision]:
    """Runs one on a free port of loopback."""
    vision = Vision()
    vision.pause.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            vision.pause.wait(PATIENCE)
            status, reply = 404, {}
            if self.path == "/v1/chat/completions":
                status, reply = vision.answer(body, {name.lower(): value for name, value in self.headers.items()})
            data = json.dumps(reply).encode()
            if vision.mode == "nested":
                data = b"[" * 100_000
            self.send_response(status)
            if vision.mode in ("long", "dripping"):
                self.send_header("Connection", "close")
                self.end_headers()
                while not vision.over.wait(0.0 if vision.mode == "long" else 0.05):
                    self.wfile.write(b" " * 65_536 if vision.mode == "long" else b" ")
                return
            self.send_header("Content-Length", str(len(data)))
            if vision.encoding is not None:
                self.send_header("Content-Encoding", vision.encoding)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # of a caller that has hung up
                super().handle()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        vision.url = f"openai:http://127.0.0.1:{server.server_port}/v1#{MODEL}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield vision
        finally:
            vision.pause.set()
            vision.over.set()
            server.shutdown()
            thread.join()
