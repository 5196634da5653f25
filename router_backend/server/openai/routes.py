"""`/v1/chat/completions`, `/v1/completions`, `/v1/models`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from router_backend import __version__
from router_backend.errors import UnknownModel
from router_backend.server.body import ERRORS, STREAM, asked, post, usage_body
from router_backend.server.disconnect import unless_gone
from router_backend.server.middleware import access_log
from router_backend.server.openai import work
from router_backend.server.openai.answers import ChatCompletion, Completion, ModelBody, ModelList
from router_backend.server.openai.bodies import ChatBody, CompletionBody
from router_backend.server.openai.forms import Called, ChatForm, Choice, CompletionForm, Form
from router_backend.server.sse import merged, stream
from router_backend.service.service import GenerationService
from router_backend.types import Chunk, GenerateRequest, ModelInfo, Usage

RESPONSES: dict[int | str, dict[str, Any]] = {**ERRORS, **STREAM, 404: ERRORS[400]}
_STARTED = int(time.time())


def openai_router(service: GenerationService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["openai"])

    what = "Answer a conversation: with a plan, JSON that keeps a schema, calls of tools, or text"

    @post(router, "/chat/completions", ChatBody, ChatCompletion, what, RESPONSES)
    async def chat(request: Request) -> Response:
        body, choices = await asked(request, service, ChatBody, partial(_choices, service))
        return await _respond(request, service, body, choices, ChatForm(functions=bool(body.functions)))

    @post(router, "/completions", CompletionBody, Completion, "Answer a prompt, or several", RESPONSES)
    async def completions(request: Request) -> Response:
        body, choices = await asked(request, service, CompletionBody, partial(_choices, service))
        return await _respond(request, service, body, choices, CompletionForm())

    @router.get("/models", response_model=ModelList, responses={401: ERRORS[401]})
    @router.get("/models/", include_in_schema=False)  # which else asks for the model without a name
    async def models() -> JSONResponse:
        """What is served, and the name that always means it."""
        return JSONResponse({"object": "list", "data": [_model(name) for name in _names(service)]})

    @router.get("/models/{model:path}", response_model=ModelBody, responses={401: ERRORS[401], 404: ERRORS[400]})
    async def model(model: str) -> JSONResponse:
        if model not in _names(service):
            raise UnknownModel("no such model is served here", param="model")
        return JSONResponse(_model(model))

    return router


def _names(service: GenerationService) -> list[str]:
    info = service.health().info
    return [*([info.model] if info else []), work.ALIAS, work.TEXT_ALIAS]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "router-backend"}


def _choices(service: GenerationService, body: ChatBody | CompletionBody) -> list[GenerateRequest]:
    with work.in_clients_words(body):
        return work.requests(body, service)


async def _respond(
    request: Request,
    service: GenerationService,
    body: ChatBody | CompletionBody,
    choices: list[GenerateRequest],
    form: Form,
) -> Response:
    with work.in_clients_words(body):
        answer = _Answer(request, service, form, choices, with_logprobs=body.alternatives is not None)
        if body.stream:
            usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            return await unless_gone(request, stream(answer.pieces(with_usage=usage)))
        return JSONResponse(await unless_gone(request, answer.whole()))


class _Answer:
    """All choices of one call. The first choice's prompt counts once, since the choices share it."""

    def __init__(
        self,
        request: Request,
        service: GenerationService,
        form: Form,
        asked: list[GenerateRequest],
        *,
        with_logprobs: bool,
    ) -> None:
        self._request, self._service, self._form, self._asked = request, service, form, asked
        self._with_logprobs = with_logprobs
        self._created = int(time.time())
        self._info: ModelInfo | None = None  # of the model that answers, which may be exchanged meanwhile
        self._calls = [0] * len(asked)
        self._ended: list[Chunk | None] = [None] * len(asked)

    async def whole(self) -> dict[str, Any]:
        choices = [Choice(index, logprobs=() if self._with_logprobs else None) for index in range(len(self._asked))]
        async with aclosing(self._news()) as news:
            async for new in news:
                choices[new.index].add(new)
        self._note()
        shown = [self._form.whole(choice) for choice in choices]
        return {**self._head(self._form.kind), "choices": shown, "usage": self._usage()}

    async def pieces(self, *, with_usage: bool) -> AsyncGenerator[Mapping[str, object], None]:
        begun = set[int]()
        null_usage = {"usage": None} if with_usage else {}
        async with aclosing(self._news()) as news:
            async for new in news:
                if new.text or new.calls or new.logprobs or new.finish_reason or new.index not in begun:
                    piece = self._form.piece(new, first=new.index not in begun)
                    begun.add(new.index)
                    yield {**self._head(self._form.chunk_kind), "choices": [piece], **null_usage}
        self._note()
        if with_usage:
            yield {**self._head(self._form.chunk_kind), "choices": [], "usage": self._usage()}

    async def _news(self) -> AsyncGenerator[Choice, None]:
        """What is new of any choice, as it comes."""
        async with aclosing(merged([self._service.generate(each) for each in self._asked])) as chunks:
            async for index, chunk in chunks:
                yield self._new(index, chunk)

    def _new(self, index: int, chunk: Chunk) -> Choice:
        if index == 0:
            access_log.routed(self._request, chunk)
        if chunk.finish_reason is not None:
            self._ended[index] = chunk
        self._info = chunk.info or self._info
        logprobs = chunk.logprobs if self._with_logprobs and chunk.logprobs else None
        calls: list[Called] = []
        if chunk.call is not None:
            calls = [Called(self._calls[index], chunk.text, chunk.call, f"call_{secrets.token_hex(12)}")]
            self._calls[index] += 1
        elif self._calls[index] and chunk.text:
            calls = [Called(self._calls[index] - 1, chunk.text)]
        return Choice(index, "" if calls else chunk.text, calls, logprobs, chunk.finish_reason)

    def _head(self, kind: str) -> dict[str, Any]:
        info = self._info
        return {
            "id": f"{self._form.prefix}-{self._asked[0].id}",
            "object": kind,
            "created": self._created,
            "model": info.model if info else work.ALIAS,
            "system_fingerprint": f"router-{__version__}-{info.engine}-{info.strategy}" if info else "router",
        }

    def _usage(self) -> dict[str, Any]:
        prompts: dict[str, Usage] = {}
        for choice, last in zip(self._asked, self._ended, strict=True):
            if last is not None:
                prompts[choice.prompt] = prompts.get(choice.prompt, Usage()).with_answer(last.usage)
        return usage_body(sum(prompts.values(), Usage()))

    def _note(self) -> None:
        """The last choice stands for all in the access log."""
        last = next((chunk for chunk in reversed(self._ended) if chunk is not None), None)
        if last is not None:
            access_log.note(self._request, last, self._asked[0].prompt)
