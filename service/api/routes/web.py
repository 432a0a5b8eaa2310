"""The page at /: a few static files that carry no secret, under a policy that lets them talk to this server only."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).resolve().parents[2] / "web"
PATHS = frozenset({"/", *(f"/page/{file.name}" for file in FOLDER.iterdir())})

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


files = _Files(directory=FOLDER)


@router.get("/")
async def read_page(request: Request) -> Response:
    return await files.get_response("index.html", request.scope)


@router.get("/page/{name}")
async def read_file(request: Request, name: str) -> Response:
    return await files.get_response(name, request.scope)
