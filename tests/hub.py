"""A hub of this machine: serves folders as repositories in the way that huggingface_hub asks for them.

`python tests/hub.py ADDRESS:PORT owner/name=FOLDER...` runs it alone.
"""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"  # of every repository


@contextmanager
def hub(repositories: Mapping[str, Path], port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """Yields the address, for HF_ENDPOINT; every revision is `COMMIT`."""
    server = ThreadingHTTPServer((host, port), handler(repositories))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def handler(repositories: Mapping[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            for name, folder in repositories.items():
                if path.startswith(f"/api/models/{name}/"):
                    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
                    if "/tree/" in path:
                        about: object = [entry(path, file) for path, file in files.items()]
                    else:
                        about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
                    return self.answer(json.dumps(about).encode(), {"Content-Type": "application/json"})
                if path.startswith(f"/{name}/resolve/"):
                    file = folder.joinpath(*path.removeprefix(f"/{name}/resolve/").split("/")[1:])
                    if file.is_file():
                        body = file.read_bytes()
                        etag = hashlib.sha256(body).hexdigest()
                        return self.answer(body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            self.answer(b"", {"X-Error-Code": "RepoNotFound"}, 404)

        def answer(self, body: bytes, headers: Mapping[str, str], status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def entry(path: str, file: Path) -> dict[str, object]:
    oid = hashlib.sha1(file.read_bytes()).hexdigest()
    return {"type": "file", "path": path, "size": file.stat().st_size, "oid": oid}


if __name__ == "__main__":
    address, *given = sys.argv[1:]
    host, _, port = address.rpartition(":")
    served = {name: Path(folder) for name, _, folder in (text.partition("=") for text in given)}
    with hub(served, int(port), host or "127.0.0.1"):
        threading.Event().wait()
