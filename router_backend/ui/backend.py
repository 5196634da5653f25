"""Backends that the page can ask: the service of this process, or a router elsewhere by its public API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, aclosing
from typing import Any, TypeAlias

from router_backend.client import ClientError, RouterClient
from router_backend.errors import InvalidRequest, RouterError, SettingsError
from router_backend.server.body import charged, checked
from router_backend.server.native import Asked, GenerateBody, PlanBody, Sampling, details, work_of
from router_backend.server.operations import health_body
from router_backend.service.caller import caller
from router_backend.service.metrics import Recent
from router_backend.service.service import GenerationService
from router_backend.settings import Settings, split_list
from router_backend.types import is_blank

Said = tuple[str, "dict[str, Any] | None"]  # the text so far; with the last of it the answer's details
_PATIENCE = 5.0
_DIGITS = 12


class LocalBackend:
    """The service of this process. `settings` are the page's: its limits, and the tools that plans are checked with."""

    def __init__(self, service: GenerationService) -> None:
        self.service, self.settings = service, service.settings

    def charged(self) -> AbstractContextManager[None]:
        """Around the reading of what was sent: what is refused there counts for the caller's key."""
        return charged(self.service, check=False)

    async def answer(self, body: Asked) -> AsyncGenerator[Said, None]:
        """The text as it grows. Closing it ends the request. Raises RouterError."""
        request = work_of(body, self.settings)
        written = ""
        async with aclosing(self.service.generate(request)) as chunks:
            async for chunk in chunks:
                written += chunk.text
                yield written, details(chunk, request.sampling.seed) if chunk.finish_reason else None

    async def health(self) -> dict[str, Any]:
        now = self.service.health()
        return {**health_body(now), "phase": now.phase, "elapsed_seconds": now.elapsed_seconds}

    async def metrics(self) -> str:
        from prometheus_client import generate_latest

        return generate_latest(self.service.metrics.registry).decode()

    def recent(self) -> list[Recent]:
        """The last requests that the caller may know of."""
        who = caller.get()
        everything = who.admin or not self.settings.api_keys
        return [each for each in reversed(self.service.metrics.recent) if everything or each.key == who.key]


class RemoteBackend:
    """A router elsewhere, which keeps to itself what it was asked last.

    Raises:
        SettingsError: the URL or the key cannot be used.
    """

    def __init__(self, settings: Settings, url: str, api_key: str | None) -> None:
        try:
            self.client = RouterClient(url, api_key, timeout=settings.request_timeout)
        except ValueError as error:
            raise SettingsError(f"HF_ROUTER_API={url}: {error}") from None
        self.settings = settings

    def charged(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def answer(self, body: Asked) -> AsyncGenerator[Said, None]:
        written, asked = "", {**body.model_dump(exclude_none=True), "details": True}
        with _told():
            async with aclosing(self.client.stream(body.path, asked)) as events:
                async for event in events:
                    written += str(event.get("text", ""))
                    yield written, event.get("details")

    async def health(self) -> dict[str, Any]:
        with _told():
            return await asyncio.to_thread(self.client.health)

    async def metrics(self) -> str:
        with _told():
            reply = await asyncio.to_thread(self.client.send, "GET", "/metrics", timeout=_PATIENCE)
            if reply.status != 200:
                raise self.client.error_of(reply)
        return reply.content.decode("utf-8", "replace")

    def recent(self) -> None:
        return None


Backend: TypeAlias = LocalBackend | RemoteBackend


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """A client's error as ours, with what to do."""
    try:
        yield
    except ClientError as error:
        advice = {401: ". Start the page with the backend's key in ROUTER_API_KEY.", None: ". Is the backend running?"}
        raise RouterError(f"{error}{advice.get(error.status, '')}", retry_after=error.retry_after) from None


def body_of(query: object, output: object = "plan", tags: object = "", **fields: object) -> Asked:
    """The API's own body for what a page sent; texts that are empty were not sent. Raises InvalidRequest."""
    if isinstance(query, str) and is_blank(query):
        raise InvalidRequest("write a request first", param="prompt")
    given = {name: whole(value) for name, value in fields.items() if value not in ("", None)}
    if output != "plan":
        sampling = {name: value for name, value in given.items() if name in Sampling.model_fields}
        return checked(GenerateBody, prompt=query, output=output, **sampling)
    listed = list(split_list(tags)) if isinstance(tags, str) else tags
    return checked(PlanBody, query=query, tags=listed or None, **given)


def whole(value: object) -> object:
    """A whole number, however JavaScript, Python and people write it; all else as it is, for a body to judge."""
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < _DIGITS:
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
