"""Wire: calls of one server upstream. Pooled connections, cancel, patience, retries, and a circuit breaker.

An event loop of its own, in one thread, carries all calls: so one that waits for headers, or in the midst of silence,
can be ended at once from any thread, and its connection with it, which is how a server learns of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import httpx

from router_backend.errors import Overloaded, RouterError, UpstreamDown, UpstreamError

T = TypeVar("T")
Event = dict[str, Any]
_CONNECT = 5.0  # seconds
_TRIES = 3
_FAILURES = 4  # one after the other: then it is left alone
_LONGEST_REST = 30.0
_LONGEST_WAIT = 5.0  # a Retry-After above it is told to the client, not waited for
_ASK = 0.05  # seconds between two looks at whether the client has left
_LARGEST = 8 << 20  # bytes of an answer, or of one event in it
_BOM = b"\xef\xbb\xbf"


class Refused(UpstreamError):
    """It says that the request is wrong: sending it again would not help, and it is not down.

    Attributes:
        http_status: that it answered with.
    """

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class _Again(Exception):
    """What went wrong before the first token, so that the call may be sent again after so many seconds."""

    def __init__(self, error: RouterError, wait: float | None = None) -> None:
        super().__init__(error.message)
        self.error, self.wait = error, wait


@dataclass
class Breaker:
    """Whether a server is asked at all. After failures in a row it is left alone; then one call tries it again."""

    failures: int = 0
    until: float = 0.0

    @property
    def is_open(self) -> bool:
        return time.monotonic() < self.until

    def check(self) -> None:
        """Raises UpstreamDown."""
        if self.is_open:
            wait = self.until - time.monotonic()
            raise UpstreamDown(f"the upstream failed {self.failures} times in a row, and rests", retry_after=wait)
        if self.failures >= _FAILURES:
            self._rest()  # others wait until this one is back

    def note(self, *, ok: bool) -> None:
        if ok:
            self.failures, self.until = 0, 0.0
            return
        self.failures += 1
        if self.failures >= _FAILURES:
            self._rest()

    def _rest(self) -> None:
        self.until = time.monotonic() + min(_LONGEST_REST, 2.0 ** (self.failures - _FAILURES))


class Wire:
    """See the module. Thread-safe.

    Attributes:
        url: of the server, without `/v1`, beside which some have paths of their own.
        calls: sent, and `retries` of them sent again; `failures` of calls by their error's code.
    """

    def __init__(self, url: str, key: str | None, silence: float) -> None:
        """`silence`: seconds without a byte after which a call is given up."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.calls = self.retries = 0
        self.failures: Counter[str] = Counter()
        self.breaker = Breaker()
        self._silence, self._key = silence, key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="upstream", daemon=True)
        self._thread.start()
        # Nothing but these headers and a call's own session goes out: what a client sent stays here.
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(silence, connect=min(silence, _CONNECT)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30),
        )

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - any JSON value
        """A whole answer, as JSON: of GET, or of POST where there is a body. Blocks.

        Raises:
            Overloaded: it has too much to do, and says for how long.
            UpstreamDown: it cannot be reached, or says nothing.
            Refused: it answers with 4xx.
            UpstreamError: it answers anything else that is not JSON.
        """
        call = self._tried(partial(self._asked, path, body), lambda: False)
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def stream(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], cancelled: Callable[[], bool]
    ) -> Iterator[Event | None]:
        """The events of an answer, and None as the last one where it was cancelled. Raises as `ask` does.

        Closing the iterator closes the call.
        """
        events: SimpleQueue[Event | RouterError | None] = SimpleQueue()
        began = ended = False

        def put(event: Event | None) -> None:
            nonlocal began
            began = True
            events.put(event)

        async def run() -> None:
            end: RouterError | None = UpstreamError("the call broke off")
            try:
                await self._tried(partial(self._streamed, path, body, headers, put), lambda: began)
                end = None
            except RouterError as error:
                end = error
            finally:
                events.put(end)

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            while not cancelled():
                try:
                    event = events.get(timeout=_ASK)
                except Empty:
                    continue
                if isinstance(event, RouterError):
                    raise event
                if event is None:
                    ended = True
                    return
                yield event
            yield None
        finally:
            if not ended:
                future.cancel()

    def failed(self, error: RouterError) -> RouterError:
        """Counts an answer that came and cannot be used; returns its error, to be raised."""
        self._note(error)
        self.failures[error.code] += 1
        return error

    def begin(self) -> None:
        """From now on it counts: what a probe was refused is no failure."""
        self.calls = self.retries = 0
        self.failures.clear()

    def close(self) -> None:
        """Ends what runs. May be called twice."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._http.aclose()
        await self._loop.shutdown_asyncgens()  # the body of an answer that was not read to its end
        await asyncio.sleep(0)  # a transport is closed in the loop's next round

    async def _tried(self, attempt: Callable[[], Awaitable[T]], began: Callable[[], bool]) -> T:
        """A call, sent again where that may help and nothing of its answer was passed on."""
        self.calls += 1
        try:
            for tries in range(1, _TRIES + 1):
                self.breaker.check()
                try:
                    result = await attempt()
                except _Again as trouble:
                    self._note(trouble.error)
                    wait = 0.1 * 3.0**tries if trouble.wait is None else trouble.wait
                    if tries == _TRIES or began() or wait > _LONGEST_WAIT:
                        raise trouble.error from None
                    self.retries += 1
                    await asyncio.sleep(wait)
                except RouterError as error:
                    self._note(error)
                    raise
                else:
                    self.breaker.note(ok=True)
                    return result
        except RouterError as error:
            self.failures[error.code] += 1
            raise
        raise AssertionError("the last try returns or raises")

    def _note(self, error: RouterError) -> None:
        if not isinstance(error, Overloaded):  # that is for the queue to learn
            self.breaker.note(ok=isinstance(error, Refused))

    async def _asked(self, path: str, body: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
        content = bytearray()
        async with self._opened(path, body, {}) as answer:
            began = time.monotonic()
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > _LARGEST or time.monotonic() - began > self._silence:
                    raise UpstreamError(f"the upstream's answer to {path} does not end")
        return self._read(content)

    async def _streamed(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], put: Callable[[Event | None], None]
    ) -> None:
        events, done, other = 0, False, b""
        async with self._opened(path, body, headers) as answer:
            try:
                async for line in self._lines(answer):
                    if not line.startswith(b"data:"):
                        other = other or line.strip()
                        continue
                    if done:
                        continue
                    if line[5:].strip() == b"[DONE]":
                        put(None)  # what is left is read to its end, so that the connection can be used again
                        done = True
                        continue
                    event = self._read(line[5:])
                    if not isinstance(event, dict) or event.get("error"):
                        raise UpstreamError(f"the upstream failed: {self._words(event)}")
                    events += 1
                    put(event)
            except httpx.RequestError:
                if not done:  # else the answer is whole, however its connection ends
                    raise
        if not events and other.startswith(b"{"):
            raise UpstreamError(f"the upstream answers without a stream: {self._words(self._read(other))}")
        if not events:
            raise _Again(UpstreamError("the upstream closed the connection without an answer"))

    async def _lines(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """Its lines, also a last one without an end; without the mark that some put before the first."""
        buffer, first = b"", True
        async for piece in answer.aiter_bytes():
            *lines, buffer = (buffer + piece).split(b"\n")
            if len(buffer) > _LARGEST:
                raise UpstreamError("the upstream sends an event without an end")
            for line in lines:
                yield line.removeprefix(_BOM) if first else line
                first = False
        yield buffer

    @asynccontextmanager
    async def _opened(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """A successful answer, its body unread."""
        method, url = "GET" if body is None else "POST", f"{self.url}/{path}"
        try:
            async with self._http.stream(method, url, json=body, headers=dict(headers)) as answer:
                if not answer.is_success:
                    await answer.aread()
                    self._refuse(answer)
                if "text/html" in answer.headers.get("content-type", ""):
                    raise UpstreamError("the upstream answers HTML: the URL is a page's or a proxy's, not an API's")
                yield answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why = ": its certificate is not trusted" if "CERTIFICATE" in str(error) else ""
            raise _Again(UpstreamDown(f"the upstream cannot be reached{why}", retry_after=2)) from None
        except httpx.TimeoutException:
            raise UpstreamDown(f"the upstream said nothing for {self._silence:g} seconds", retry_after=5) from None
        except httpx.TransportError:
            raise _Again(UpstreamError("the upstream broke off the connection")) from None
        except httpx.RequestError:
            raise UpstreamError("the upstream's answer cannot be unpacked") from None
        except httpx.InvalidURL:
            raise UpstreamError("the upstream's URL is not one") from None

    def _refuse(self, answer: httpx.Response) -> None:
        status, wait = answer.status_code, _retry_after(answer)
        try:
            said = self._words(answer.json())
        except (ValueError, RecursionError):
            said = "(no JSON)"
        told = f"the upstream answers {status}: {said}"
        if status == 429:
            raise _Again(Overloaded("the upstream has too much to do", retry_after=wait or 1.0), wait)
        if status in (502, 503, 504):
            raise _Again(UpstreamDown(told, retry_after=wait or 2.0), wait)
        if status >= 500:
            raise _Again(UpstreamError(told))
        if status in (401, 403):
            raise Refused(f"the upstream answers {status}: it does not take the key. Set UPSTREAM_API_KEY", status)
        if status < 400:
            raise UpstreamError(f"{told}. It redirects: give the URL that it means")
        raise Refused(told, status)

    def _read(self, content: bytes | bytearray) -> Any:  # noqa: ANN401 - any JSON value
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise UpstreamError(f"the upstream answers no JSON: {content[:60].decode(errors='replace')!r}") from None

    def _words(self, said: object) -> str:
        """The message in an error's body, on one line, without the key: a server may say anything."""
        found = said.get("error", said) if isinstance(said, dict) else said
        text = str(found.get("message", found) if isinstance(found, dict) else found)
        text = text.replace(self._key, "***") if self._key else text
        return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:200]


def _retry_after(answer: httpx.Response) -> float | None:
    value = answer.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        return float(value)
    try:
        until = parsedate_to_datetime(value).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, (until - datetime.now(timezone.utc)).total_seconds()), 999_999.0)
