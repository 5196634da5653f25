"""RouterClient: a small HTTP client of a router backend. Every failure is one `ClientError` that a person understands.

ClientError           the answer is an error, or no answer of a router
├── Unreachable       no connection: nothing listens, no such host, TLS failed
└── TimedOut          no whole answer in time
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

from router_backend.jsonl import value_of

_GENERATE = "/v1/generate"
_RETRIED = (429, 503)
_EXCERPT = 300
_CONNECT = 10.0


class ClientError(Exception):
    """Why there is no answer.

    Attributes:
        status: the HTTP status; None where no answer came.
        message: what the server says, or what went wrong on the way.
        request_id: the server's `x-request-id`, to find the request in its log.
        retry_after: seconds after which the server asks to try again.
    """

    def __init__(
        self, status: int | None, message: str, request_id: str | None = None, *, retry_after: float | None = None
    ) -> None:
        self.status, self.message, self.request_id, self.retry_after = status, message, request_id, retry_after
        line = f"{status} {httpx.codes.get_reason_phrase(status or 0)}".strip()
        told = f"{line}: {message}" if status is not None else message
        super().__init__(f"{told} (request {request_id})" if request_id else told)


class Unreachable(ClientError):
    """No connection."""


class TimedOut(ClientError):
    """No whole answer in time."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came: any status, any body."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    seconds: float

    def json(self) -> Any:  # noqa: ANN401 - any JSON
        """The body as JSON; None where it is none."""
        return value_of(self.content)

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")

    @property
    def retry_after(self) -> float | None:
        """`Retry-After` in seconds; the form with a date is not one that routers send."""
        value = self.headers.get("retry-after", "").strip()
        return float(value) if re.fullmatch(r"[0-9]{1,9}", value) else None


def base_url(url: str) -> str:
    """The URL without `/v1/generate`. Raises ValueError where it is no http(s) URL."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) > 65535:
        raise ValueError("the URL must be like https://host or https://host/v1/generate")
    path = parsed.path.rstrip("/").removesuffix(_GENERATE).rstrip("/")
    return str(parsed.copy_with(path=path or "/", query=None, fragment=None)).rstrip("/")


@dataclass
class RouterClient:
    """Talks to one router. Thread-safe; close it, or use it as a context manager.

    Attributes:
        url: the base URL, or the full one of `/v1/generate` (as in `HF_ROUTER_API`).
        api_key: sent as a bearer token; in no message and in no repr.
        timeout: seconds for a whole answer.
        retries: how often 429 and 503 are tried again, after the time that `Retry-After` names.
        longest_wait: a `Retry-After` above this is not waited for.
        transport: takes the network's place, in tests.

    Raises:
        ValueError: the URL or the key cannot be used.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    retries: int = 0
    longest_wait: float = 60.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    transport: httpx.BaseTransport | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # The host's own error would quote the header, and the key with it.
        if self.api_key and not re.fullmatch(r"[!-~]+", self.api_key):
            raise ValueError("the API key holds a character that no header can carry")
        parsed = httpx.URL(base_url(self.url))
        auth = (parsed.username, parsed.password) if parsed.userinfo else None
        self.url = str(parsed.copy_with(userinfo=b"")).rstrip("/")
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        self._http = httpx.Client(
            headers=headers,
            auth=None if self.api_key else auth,
            limits=httpx.Limits(max_connections=None),
            transport=self.transport,
        )

    def __enter__(self) -> RouterClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(self, prompt: str, **fields: object) -> dict[str, Any]:
        """`POST /v1/generate`: the body of the answer, `{"text": …}` and `details` where asked for.

        Raises:
            ClientError: any status but 200, or a body that is no such answer.
        """
        return self._post(_GENERATE, {"prompt": prompt, **fields}, "text")

    def plan(self, query: str, **fields: object) -> dict[str, Any]:
        """`POST /v1/plan`: `{"plan": …, "text": …, "report": …}`. Raises as `generate` does."""
        return self._post("/v1/plan", {"query": query, **fields}, "text")

    def health(self) -> dict[str, Any]:
        """`GET /health`: what it says, while loading or failed (503) too. Raises as `generate` does."""
        reply = self.send("GET", "/health")
        if reply.status not in (200, 503):
            raise self.error_of(reply)
        return self._object(reply, "status")

    def send(self, method: str, path: str, body: object = None, *, timeout: float | None = None) -> Reply:
        """One request, no retry, redirects not followed: whatever comes back.

        Raises:
            Unreachable, TimedOut, ClientError: nothing came back.
        """
        headers = {} if body is None else {"Content-Type": "application/json"}
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        began = time.monotonic()
        received = bytearray()
        with (
            self._patience(path, timeout) as patience,
            self._http.stream(method, self.url + path, content=content, headers=headers, timeout=patience) as answer,
        ):
            for piece in answer.iter_bytes():
                received += piece
                # httpx limits each read; an answer that trickles would never end.
                if time.monotonic() - began > (patience.read or 0):
                    raise httpx.ReadTimeout("too slow")
        return Reply(answer.status_code, answer.headers, bytes(received), time.monotonic() - began)

    @contextlib.contextmanager
    def _patience(self, path: str, timeout: float | None = None) -> Iterator[httpx.Timeout]:
        """How long is waited. Raises Unreachable, TimedOut or ClientError for what goes wrong on the way."""
        limit = self.timeout if timeout is None else timeout
        patience = httpx.Timeout(limit, connect=min(limit, _CONNECT))
        try:
            yield patience
        except httpx.ConnectTimeout:
            raise Unreachable(None, f"cannot connect to {self.url}: no answer in {patience.connect:g} s") from None
        except httpx.TimeoutException:
            raise TimedOut(None, f"no whole answer from {self.url}{path} in {limit:g} s") from None
        except httpx.RequestError as error:
            reason = self.clean(str(error)) or type(error).__name__
            if isinstance(error, httpx.ConnectError):
                raise Unreachable(None, f"cannot connect to {self.url}: {reason}") from None
            raise ClientError(None, f"the connection to {self.url} broke: {reason}") from None

    async def stream(self, path: str, body: Mapping[str, object]) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the events of an answer as they come. Closing it hangs up, which cancels the request.

        Raises:
            ClientError: any status but 200, an error in mid-stream, or a stream that ends before its answer does.
        """
        began, sent, whole = time.monotonic(), {**body, "stream": True}, False
        with self._patience(path) as patience:
            async with (
                httpx.AsyncClient(headers=self._http.headers, auth=self._http.auth, timeout=patience) as http,
                http.stream("POST", self.url + path, json=sent) as answer,
            ):
                if answer.status_code != 200:
                    content = await answer.aread()
                    raise self.error_of(Reply(answer.status_code, answer.headers, content, time.monotonic() - began))
                async for line in _lines(answer.aiter_text()):
                    data = line.removeprefix("data: ")
                    if whole := data == "[DONE]":
                        break
                    if data != line:
                        yield self._event(data)
        if not whole:
            raise ClientError(None, f"{self.url} ended the stream before its answer was complete")

    def _event(self, data: str) -> dict[str, Any]:
        value = value_of(data)
        if not isinstance(value, dict):
            raise ClientError(200, f"an event of the stream is not a JSON object: {self.clean(data)!r}")
        if isinstance(error := value.get("error"), dict):
            raise ClientError(None, self.clean(str(error.get("message"))))
        return value

    def _post(self, path: str, body: dict[str, object], key: str) -> dict[str, Any]:
        for attempt in range(self.retries + 1):
            reply = self.send("POST", path, body)
            if reply.status == 200:
                return self._object(reply, key)
            wait = 2.0**attempt if reply.retry_after is None else reply.retry_after
            if reply.status not in _RETRIED or attempt == self.retries or wait > self.longest_wait:
                break
            self.sleep(wait)
        raise self.error_of(reply)

    def _object(self, reply: Reply, key: str) -> dict[str, Any]:
        value = value_of(reply.content)
        if isinstance(value, dict) and isinstance(value.get(key), str):
            return value
        told = f"the body is no answer of a router: no {key!r} in {self._excerpt(reply)}"
        raise ClientError(reply.status, told, self._id(reply))

    def error_of(self, reply: Reply) -> ClientError:
        """What an answer that is no success says."""
        told = error_message(reply)
        message = self.clean(told) if told is not None else f"the body is {self._excerpt(reply)}"
        if 300 <= reply.status < 400:
            message = f"it redirects to {self.clean(reply.headers.get('location', 'nowhere'))}; give that URL"
        return ClientError(reply.status, message, self._id(reply), retry_after=reply.retry_after)

    def _id(self, reply: Reply) -> str | None:
        return self.clean(reply.request_id) if reply.request_id else None

    def _excerpt(self, reply: Reply) -> str:
        return repr(self.clean(reply.content.decode("utf-8", "replace"))) if reply.content else "empty"

    def clean(self, text: str) -> str:
        """One printable line, not too long, without the key: a server may say anything."""
        if self.api_key:
            text = text.replace(self.api_key, "***")
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}…"


def error_message(reply: Reply) -> str | None:
    """The message of a body in the one error shape, exactly; None for any other body."""
    body = value_of(reply.content)
    error = body.get("error") if isinstance(body, dict) and set(body) == {"error"} else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        return None
    texts = isinstance(error["message"], str) and isinstance(error["type"], str)
    options = all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))
    return error["message"] if texts and options and error["message"] else None


async def _lines(pieces: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """What stands between line feeds: httpx ends lines at what may stand in a text too."""
    rest = ""
    async for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield line.removesuffix("\r")
    if rest:
        yield rest
