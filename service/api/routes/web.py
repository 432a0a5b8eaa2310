"""Pages: the one at /, and the API's description at /docs and /redoc; all scripts are of this server.

They carry no secret, and their policies let them talk to this server only.
"""

import base64
import hashlib
import re
from collections.abc import MutableMapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from bestofn.service.core.version import VERSION

FOLDER = Path(__file__).resolve().parents[2] / "web"
SCRIPTS = ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js")  # Swagger UI and Redoc, of fastapi-offline
PATHS = frozenset(
    {"/", "/docs", "/redoc"}
    | {f"/page/{file.name}" for file in FOLDER.iterdir()}
    | {f"/docs/{name}" for name in SCRIPTS}
)

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again after an upgrade; unchanged files are a 304
}

router = APIRouter(include_in_schema=False)


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: MutableMapping[str, Any]) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


_page_files = _Files(directory=FOLDER)
_scripts = StaticFiles(directory=str(files("fastapi_offline").joinpath("static")))


@router.get("/")
async def read_page(request: Request) -> Response:
    return await _page_files.get_response("index.html", request.scope)


@router.get("/page/{name}")
async def read_file(request: Request, name: str) -> Response:
    return await _page_files.get_response(name, request.scope)


def _page(page: HTMLResponse) -> Response:
    """A page of FastAPI's that may run the scripts that stand in it and ours, and talk to this server alone."""
    inline = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inline)
    page.headers["Content-Security-Policy"] = (
        f"default-src 'self'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
        "worker-src blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    return page


# Addresses are relative, so that the pages work behind a path prefix too.
@router.get("/docs")
async def read_docs() -> Response:
    return _page(
        get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"bestofn {VERSION}",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="page/icon.svg",
        )
    )


@router.get("/redoc")
async def read_redoc() -> Response:
    return _page(
        get_redoc_html(
            openapi_url="openapi.json",
            title=f"bestofn {VERSION}",
            redoc_js_url="docs/redoc.standalone.js",
            redoc_favicon_url="page/icon.svg",
            with_google_fonts=False,
        )
    )


@router.get("/docs/{name}")
async def read_script(request: Request, name: str) -> Response:
    return await _scripts.get_response(name, request.scope)
