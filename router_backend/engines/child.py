"""Child: a process of ours that serves an engine over a unix socket, which nobody else can open.

It ends with this process, whatever ends that; it is killed where it hangs; and where it dies, it dies alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from router_backend.errors import ContextOverflow, EngineError, EngineLost, InvalidRequest, RungError

_LONGEST_FOLDER = 80  # characters: a socket's path has at most 103
_SECRET = re.compile("token|key|secret|passw", re.IGNORECASE)  # in the names of variables that a child need not know


class Child:
    """A script that runs in a process of its own. Thread-safe.

    Its one argument is JSON: `orders`, with the path of the `socket` that it is to serve on, and the id of its
    `parent`. What it writes are lines of JSON.

    Attributes:
        patience: seconds that it may show no sign of life before it is killed; None: for ever.
        pid: of the process.
    """

    def __init__(
        self, script: str, orders: dict[str, Any], environment: dict[str, str], patience: float | None
    ) -> None:
        """Raises RungError where no process can be started."""
        self.patience = patience
        self._folder = _folder()
        self._socket = self._folder / "server.sock"
        orders = {**orders, "socket": str(self._socket), "parent": os.getpid()}
        inherited = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
        self._said: SimpleQueue[Any] = SimpleQueue()
        self._ended = threading.Event()
        started: Future[subprocess.Popen[bytes]] = Future()
        # The system ends a child with the thread that began it. So that thread stays for as long as the child.
        threading.Thread(
            target=self._keep,
            args=(started, [sys.executable, script, json.dumps(orders)], {**environment, **inherited}),
            name="child",
            daemon=True,
        ).start()
        try:
            self._process = started.result()
        except OSError as error:
            raise RungError(f"no process can be started: {error.strerror}") from error
        self.pid = self._process.pid

    @property
    def died(self) -> bool:
        return self._ended.is_set()

    def heard(self, patience: float | None) -> Any:  # noqa: ANN401 - whatever the script says
        """What it says next. Raises RungError where it has ended, or is silent for so many seconds, which ends it."""
        try:
            said = self._said.get(timeout=patience)
        except Empty:
            self.close()
            raise RungError(f"no sign of life for {patience:g} seconds") from None
        if said is None:
            raise RungError(f"its process ended ({self._end()})")
        return said

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - any JSON value
        """A whole answer, as JSON: of GET, or of POST where there is a body.

        Raises:
            EngineLost: it died, or was killed because it hangs.
            EngineError: it failed, or does not answer as a server does.
            InvalidRequest: it refuses what was asked.
        """
        with self._asked(path, body) as answer:
            return json.loads(answer.read())

    def stream(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], cancelled: Callable[[], bool]
    ) -> Iterator[dict[str, Any] | None]:
        """The events of an answer, and None as the last one where it was cancelled. Raises as `ask` does.

        `cancelled` is asked at each event. Closing the iterator ends the work. It needs no `headers`.
        """
        with self._asked(path, body) as answer:
            for line in answer:
                kind, _, value = line.partition(b": ")
                if value.startswith(b"[DONE]"):
                    return
                if kind not in (b"data", b"error"):
                    continue
                event, stop = json.loads(value), cancelled()
                if kind == b"error" or "error" in event:
                    raise refusal(event.get("error", event))
                yield event
                if stop:
                    yield None
                    return
            raise IncompleteRead(b"")

    @contextmanager
    def _asked(self, path: str, body: Mapping[str, Any] | None) -> Iterator[HTTPResponse]:
        """A successful answer, to be read inside the block; what goes on at the block's end is cancelled."""
        connection = HTTPConnection("localhost")
        connection.sock = stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(self.patience)
        try:
            stream.connect(str(self._socket))
            sent = None if body is None else json.dumps(body)
            headers = {"Connection": "close", "Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", f"/{path}", sent, headers)
            try:
                with connection.getresponse() as answer:
                    if answer.status != 200:
                        raise refusal(json.loads(answer.read())["error"])
                    yield answer
            finally:
                # Closing is not enough: a process that was forked off this one holds the connection too.
                with suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
        except (OSError, HTTPException) as error:
            raise self._failure(error) from error
        finally:
            connection.close()

    def close(self) -> None:
        """Kills it. Returns when it has ended; a process that the system holds back is left."""
        self._process.kill()
        self._ended.wait(5)

    def _keep(self, started: Future[subprocess.Popen[bytes]], command: list[str], environment: dict[str, str]) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own file
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            started.set_exception(error)
        else:
            with process:
                started.set_result(process)
                assert process.stdout is not None
                for line in process.stdout:
                    with suppress(ValueError):  # cut off by its end
                        self._said.put(json.loads(line))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._ended.set()
        self._said.put(None)

    def _end(self) -> str:
        code = self._process.returncode
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _failure(self, error: Exception) -> EngineError:
        if isinstance(error, TimeoutError):
            self.close()
            return EngineLost(f"the engine showed no sign of life for {self.patience:g} seconds", retry_after=1)
        if self._ended.wait(1):  # the connection breaks a moment before the process is gone
            return EngineLost(f"the engine's process ended ({self._end()})", retry_after=1)
        return EngineError(f"the engine broke off: {type(error).__name__}")


def refusal(error: dict[str, Any]) -> EngineError | InvalidRequest:
    """What llama.cpp's server says of an error, as ours."""
    if error.get("type") == "exceed_context_size_error":
        return ContextOverflow(
            f"the prompt has {error.get('n_prompt_tokens')} tokens, the context {error.get('n_ctx')}", param="prompt"
        )
    if error.get("type") == "invalid_request_error":
        return InvalidRequest(str(error.get("message")))
    return EngineError(f"llama.cpp failed: {error.get('message')}")


def _folder() -> Path:
    """A folder for the socket, that nobody else may open. Raises RungError where none can be made."""
    with suppress(OSError):
        place = tempfile.gettempdir()
        if len(place) <= _LONGEST_FOLDER:
            return Path(tempfile.mkdtemp(prefix="router-", dir=place))
    for place in ("/tmp", "/dev/shm"):  # noqa: S108 # nosec B108
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="router-", dir=place))
    raise RungError("there is no place for llama.cpp's socket: let TMPDIR name a folder that can be written to")
