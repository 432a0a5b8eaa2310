"""A safety checker or score server on loopback whose answers a test decides."""

import io
import json
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


def redness(body: dict[str, Any]) -> float:
    """Red less blue of a request's image: a score that passes a judge's start-up test."""
    with Image.open(io.BytesIO(b64decode(body["image"]))) as image:
        red, _, blue = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0)
    return float(red - blue)


@contextmanager
def checks(answer: Answer) -> Iterator[str]:
    """The address of a server; `answer` makes status and JSON of a body's fields."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"name": "checks", "revision": "1"})

        def do_POST(self) -> None:
            self.reply(*answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def reply(self, status: int, fields: Any) -> None:
            data = json.dumps(fields).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/check"
        finally:
            server.shutdown()
            thread.join()
