"""One shape for every error: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
import math

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from router_backend.errors import RouterError

_log = logging.getLogger(__name__)
_CODES = {404: "not_found", 405: "method_not_allowed"}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


def error_body(message: str, type_: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def describe(error: Exception) -> dict[str, object]:
    """The body for any exception. What is not ours is named by its class alone: its text may hold anything."""
    if isinstance(error, RouterError):
        return error_body(error.message, error.type, error.param, error.code)
    return error_body("internal error", "server_error", None, "internal_error")


def respond(error: RouterError) -> JSONResponse:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(describe(error), error.status, headers)


def install(app: FastAPI) -> None:
    """Answers every exception in the one shape."""

    @app.exception_handler(RouterError)
    async def on_router_error(request: Request, error: RouterError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail).lower() if error.status_code in _CODES else str(error.detail)
        if error.status_code in _CODES:
            message = f"{message}: {request.method} {request.url.path}"
        body = error_body(message, "invalid_request_error", None, _CODES.get(error.status_code))
        return JSONResponse(body, error.status_code, error.headers)
