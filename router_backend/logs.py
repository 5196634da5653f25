"""Logging: one line an event, for people or as JSON, with every known secret blacked out."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TextIO

from router_backend.errors import printable
from router_backend.service.caller import caller
from router_backend.settings import Settings

_printed = logging.getLogger("router_backend.printed")
_LONGEST_LINE = 8192
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class LineFormatter(logging.Formatter):
    """Formats a record with its extra fields. `secrets` never come out, whatever the message holds."""

    def __init__(self, *, as_json: bool, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._as_json = as_json
        # As they are and as JSON writes them; the longest first, since one may begin another.
        spelled = {form for secret in secrets for form in (secret, json.dumps(secret, ensure_ascii=False)[1:-1])}
        self._secrets = sorted(spelled, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        extra = _request() | extra
        when = datetime.fromtimestamp(record.created, timezone.utc)
        message = record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self._as_json:
            line = {"time": when.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
            line |= {"logger": record.name, "message": message, **extra}
            if trace:
                line["exception"] = trace
            text = json.dumps(line, ensure_ascii=False, default=str)
        else:
            fields = "".join(f" {key}={_short(value)}" for key, value in extra.items() if value is not None)
            below = "".join(f"\n  {line}" for line in trace.splitlines()) if trace else ""
            message = message.replace("\n", "\\n")
            text = f"{when:%H:%M:%S} {record.levelname.lower():7} {message}{fields}{below}"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return printable(text)


def _request() -> dict[str, str]:
    """What a line of a request tells of it, wherever in its course the line is written."""
    now = caller.get()
    told = {"request_id": now.request_id, "key": now.key, "trace_id": now.trace_id}
    return {name: value for name, value in told.items() if value}


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)


def configure(settings: Settings) -> None:
    """Sends this package's and uvicorn's records to standard error. Called by the command line only."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(as_json=as_json, secrets=settings.secrets))
    for name, level in (("router_backend", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


@contextlib.contextmanager
def captured() -> Iterator[None]:
    """Within it, what others print is a line of the log, escaped and redacted like each of ours."""
    with contextlib.redirect_stdout(_Lines(sys.stdout)), contextlib.redirect_stderr(_Lines(sys.stderr)):
        yield


class _Lines(io.TextIOBase):
    """Stands for a standard stream. A part of a line waits for the rest of it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._here = threading.local()

    def write(self, text: str) -> int:
        here = vars(self._here)
        if here.get("busy"):  # the handler's own complaint, for which there is no other place
            return len(text)
        *whole, rest = re.split(r"[\r\n]", here.get("rest", "") + text)
        here["rest"], here["busy"] = rest, True
        try:
            for line in (*whole, rest) if len(rest) > _LONGEST_LINE else whole:
                if line.strip():
                    _printed.warning("%s", line)
        finally:
            here["busy"] = False
            if len(rest) > _LONGEST_LINE:
                here["rest"] = ""
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()
