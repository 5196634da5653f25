"""The pages for people: `/` leads to the UI, `/console` is one file."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from router_backend.server.middleware.headers import page_policy

CONSOLE = Path(__file__).with_name("console.html")


def pages_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    console = CONSOLE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": page_policy(console)}

    @router.api_route("/", methods=["GET", "HEAD"])
    async def root(request: Request) -> RedirectResponse:
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/gradio{query}", 307)

    @router.get("/console")
    async def show_console() -> HTMLResponse:
        return HTMLResponse(console, headers=headers)

    return router
