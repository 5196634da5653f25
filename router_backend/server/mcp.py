"""The router as a tool of agents: the Model Context Protocol at `/mcp`, as streamable HTTP, by its official SDK.

A request is whole in itself, so that no session outlives it: it runs in the context of its caller, for the caller's key
and share, and ends with its client.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import math
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Request
from pydantic import Field
from starlette.types import Message, Receive, Scope, Send

from router_backend import __version__
from router_backend.errors import InvalidRequest, RouterError
from router_backend.plan.schema import Plan
from router_backend.server.body import Body, Budget, NonEmptyText, Prompt, charged, checked, read_json
from router_backend.server.disconnect import unless_gone
from router_backend.server.errors import describe
from router_backend.server.middleware import access_log
from router_backend.server.native import PlanBody, Task, work_of
from router_backend.server.openai.decisions import DecisionBody, content_of, request_of
from router_backend.service.service import GenerationService
from router_backend.types import Answer, GenerateRequest

if TYPE_CHECKING:
    from mcp import types
    from mcp.server import Server, ServerRequestContext

PATH = "/mcp"
_log = logging.getLogger(__name__)
_PLAN = (
    "Plans a task before it is begun: which specialists do what, in which order, and how the result is judged. "
    "Answers with a routing plan, whose steps are in route_plan as /tool(what it does)."
)


_DECIDE = (
    "Says which of several answers to a question about a text is the likeliest, with the probability of each. "
    "Among the router's own tools it says who should have a task."
)


class PlanArguments(Task):
    """What an agent says; how the answer is drawn is the operator's."""

    max_new_tokens: Budget | None = Field(
        None, description="Token budget of the plan, which is written to fit. Without it, the server's own."
    )


class DecideArguments(Body):
    """One question, and what may be answered."""

    input: Prompt = Field(description="What the question is about.")
    question: Prompt
    choices: Annotated[list[NonEmptyText], Field(min_length=2, max_length=64)]


def mount_mcp(app: FastAPI, service: GenerationService) -> None:
    """Adds `/mcp`, where the SDK is installed. It is imported with the first request."""
    if importlib.util.find_spec("mcp") is not None:
        app.add_route(PATH, Mcp(service), methods=["POST"], include_in_schema=False)  # type: ignore[arg-type]


class Mcp:
    """ASGI app: answers each message with JSON. Streams are for what a server says on its own, which is nothing."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service
        self._made = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await read_json(request, self._service.settings.max_body_bytes)
        async with self._made:
            server = await asyncio.to_thread(lambda: self._server)
        await unless_gone(request, _exchange(server, scope, body, send))

    @cached_property
    def _server(self) -> Server[Any]:
        """The SDK's server, whose import takes a while."""
        from mcp.server import Server

        return Server("router-backend", version=__version__, on_list_tools=self._list, on_call_tool=self._call)

    async def _list(self, _: ServerRequestContext, params: object) -> types.ListToolsResult:
        from mcp import types

        harmless = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
        plan, decide = PlanArguments.model_json_schema(), DecideArguments.model_json_schema()
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name="plan",
                    description=_PLAN,
                    input_schema=plan,
                    output_schema=Plan.model_json_schema(),
                    annotations=harmless,
                ),
                types.Tool(name="decide", description=_DECIDE, input_schema=decide, annotations=harmless),
            ]
        )

    async def _call(
        self, context: ServerRequestContext[Any, Request], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """What is wrong is the tool's result, as the protocol has it: a model can read it and do better."""
        from mcp import types

        try:
            tools = {"plan": self._plan, "decide": self._decide}
            if params.name not in tools:
                raise InvalidRequest(f"there is no tool {params.name!r}; there is {', '.join(tools)}")
            assert context.request is not None, "it came by HTTP"
            found = await tools[params.name](context.request, params.arguments or {})
        except Exception as error:
            said = describe(error)
            if not isinstance(error, RouterError):
                _log.exception("unhandled error in a call")
            elif error.retry_after is not None:
                said["retry_after"] = math.ceil(error.retry_after)
            text = json.dumps(said, ensure_ascii=False)
            return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)
        text = json.dumps(found, ensure_ascii=False)
        return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=found)

    async def _plan(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        service = self._service
        with charged(service):
            task = checked(PlanArguments, **arguments)
        work = work_of(PlanBody(**dict(task)), service.settings)
        plan: dict[str, Any] = json.loads((await self._answer(request, work)).text)
        return plan

    async def _decide(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        with charged(self._service):
            said = checked(DecideArguments, **arguments)
            choices = [{"value": each} for each in dict.fromkeys(said.choices)]
            question = {"type": "choice", "instructions": said.question, "choices": choices}
            body = checked(DecisionBody, input=said.input, questions=[question])
            work = request_of(body, self._service.settings)
        found: dict[str, Any] = content_of(body, await self._answer(request, work))["answers"][0]
        return found

    async def _answer(self, request: Request, work: GenerateRequest) -> Answer:
        answer = await self._service.answer(work)
        access_log.note(request, answer.last, work.prompt)
        return answer


async def _exchange(server: Server[Any], scope: Scope, body: bytes, send: Send) -> None:
    """Hands one request to the SDK. Its tasks are children of this one, which is cancelled when the client leaves."""
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    whole: list[Message] = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        return whole.pop() if whole else await asyncio.get_running_loop().create_future()

    manager = StreamableHTTPSessionManager(
        server, stateless=True, json_response=True, max_request_body_size=max(len(body), 1)
    )
    async with manager.run():
        await manager.handle_request(scope, receive, send)
