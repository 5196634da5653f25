"""`/login`: a form where people give their API key once, so that the pages work in a browser."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from router_backend.errors import PayloadTooLarge
from router_backend.server.middleware import session
from router_backend.server.middleware.headers import page_policy

if TYPE_CHECKING:
    from router_backend.server.middleware.guard import Keys

PATH = "/login"
_PAGE = Path(__file__).with_name("login.html").read_text(encoding="utf-8")
_POLICY = page_policy(_PAGE)
_HERE = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", re.ASCII)  # a path of this server, never another server
_LONGEST = 8192


def login_page(scope: Scope, status: int, where: str | None = None, *, wrong: bool = False) -> HTMLResponse:
    """The form. `where` it leads afterwards is a path here; without it, back to the page that was asked for."""
    root = scope.get("root_path", "")
    text = _PAGE.replace("{{action}}", html.escape(f"{root}{PATH}"))
    text = text.replace("{{where}}", html.escape(_path(where if where is not None else scope["path"])))
    text = text.replace("{{wrong}}", "" if wrong else "hidden")
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": _POLICY}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return HTMLResponse(text, status, headers)


def login_router(keys: Keys) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get(PATH)
    async def show(request: Request) -> Response:
        return login_page(request.scope, 200, "/")

    @router.post(PATH)
    async def log_in(request: Request) -> Response:
        raw = bytearray()
        async for piece in request.stream():
            raw += piece
            if len(raw) > _LONGEST:
                raise PayloadTooLarge(f"the body has more than {_LONGEST} bytes")
        fields = parse_qs(raw.decode("utf-8", "replace"))
        where = _path(fields.get("where", ["/"])[0])
        name = keys.name_of(fields.get("key", [""])[0].strip().encode())
        if name is None:
            return login_page(request.scope, 401, where, wrong=True)
        answer = RedirectResponse(f"{request.scope.get('root_path', '')}{where}", 303)
        answer.set_cookie(
            session.COOKIE,
            session.issue(name, keys.digests[name]),
            max_age=session.SECONDS,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return answer

    return router


def _path(where: str) -> str:
    return where if _HERE.fullmatch(where) and where != PATH else "/"
