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
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from router_backend.errors import EngineError, EngineLost, RungError

_LONGEST_FOLDER = 80  # characters: a socket's path has at most 103
_SECRET = re.compile("token|key|secret|passw", re.IGNORECASE)  # in the names of variables that a child need not know


class _Connection(HTTPConnection):
    """To a unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


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
            self.kill()
            raise RungError(f"no sign of life for {patience:g} seconds") from None
        if said is None:
            raise RungError(f"its process ended ({self._end()})")
        return said

    @contextmanager
    def asked(self, path: str, body: dict[str, Any] | None = None) -> Iterator[HTTPResponse]:
        """Its answer, to be read inside the block; what goes on at the block's end is cancelled.

        Raises:
            EngineLost: it died, or was killed because it hangs.
            EngineError: it does not answer as a server does.
        """
        connection = _Connection(self._socket, self.patience)
        try:
            sent = None if body is None else json.dumps(body)
            headers = {"Connection": "close", "Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", path, sent, headers)
            stream = connection.sock
            try:
                with connection.getresponse() as answer:
                    yield answer
            finally:
                # Closing is not enough: a process that was forked off this one holds the connection too.
                with suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
        except (OSError, HTTPException) as error:
            raise self._failure(error) from error
        finally:
            connection.close()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """The status and the JSON of its whole answer. Raises as `asked` does."""
        with self.asked(path, body) as answer:
            return answer.status, json.loads(answer.read())

    def kill(self) -> None:
        """Returns when it has ended; a process that the system holds back is left."""
        self._process.kill()
        self._ended.wait(5)

    def _keep(self, started: Future[subprocess.Popen[bytes]], command: list[str], environment: dict[str, str]) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own file
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
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
            self.kill()
            return EngineLost(f"the engine showed no sign of life for {self.patience:g} seconds", retry_after=1)
        if self._ended.wait(1):  # the connection breaks a moment before the process is gone
            return EngineLost(f"the engine's process ended ({self._end()})", retry_after=1)
        return EngineError(f"the engine broke off: {type(error).__name__}")


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
