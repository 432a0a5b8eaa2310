"""Safety checks of your own behind an address, for BESTOFN_PROMPT_CHECKER and BESTOFN_IMAGE_CHECKER."""

import base64
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageStat

NAME, REVISION = "no-red", "1"  # another revision whenever decisions change


def unsafe_prompt(prompt: str) -> bool:
    return "blood" in prompt.lower()


def unsafe_image(image: Image.Image) -> bool:
    red, green, blue = ImageStat.Stat(image).mean
    return red > 2 * max(green, blue)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer({"name": NAME, "revision": REVISION})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "prompt" in asked:
            return self.answer({"unsafe": unsafe_prompt(asked["prompt"])})
        with Image.open(io.BytesIO(base64.b64decode(asked["image"]))) as image:
            self.answer({"unsafe": unsafe_image(image.convert("RGB"))})

    def answer(self, fields: dict[str, object]) -> None:
        data = json.dumps(fields).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8002), Handler) as server:
        print(f"checking at http://127.0.0.1:{server.server_port}/check", flush=True)
        server.serve_forever()
