"""The pages for people: `/` leads to the UI, `/console` is one file."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

CONSOLE = Path(__file__).with_name("console.html")
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def pages_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    console = CONSOLE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _policy(console)}

    @router.get("/")
    async def root(request: Request) -> RedirectResponse:
        return moved(request, "/gradio")

    @router.get("/console")
    async def show_console() -> HTMLResponse:
        return HTMLResponse(console, headers=headers)

    return router


def moved(request: Request, path: str) -> RedirectResponse:
    """To another path of this server, with the query that was sent."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{request.scope.get('root_path', '')}{path}{query}", 307)


def _policy(page: str) -> str:
    """A Content-Security-Policy for a page of one file: its one script and style, and nothing from elsewhere."""
    sources = ""
    for kind, text in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources += f"{kind}-src 'sha256-{digest}'; "
    return f"default-src 'none'; {sources}connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'"
