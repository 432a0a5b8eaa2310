"""A judge of your own behind an address: BESTOFN_JUDGE=http://127.0.0.1:8001/score. Put your model into `score`."""

import base64
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageStat

NAME, REVISION = "redness", "1"  # another revision whenever scores change


def score(prompt: str, image: Image.Image) -> dict[str, float]:
    """Either {"yes": logit, "no": logit}, or {"reward": number} that counts as log-odds of yes."""
    red, green, blue = ImageStat.Stat(image).mean
    return {"reward": (red - max(green, blue)) / 32 if "red" in prompt else 0.0}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer({"name": NAME, "revision": REVISION})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Image.open(io.BytesIO(base64.b64decode(asked["image"]))) as image:
            self.answer(score(asked["prompt"], image.convert("RGB")))

    def answer(self, fields: dict[str, object]) -> None:
        data = json.dumps(fields).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8001), Handler) as server:
        print(f"judging at http://127.0.0.1:{server.server_port}/score", flush=True)
        server.serve_forever()
