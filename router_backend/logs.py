"""Logging: one line an event, for people or as JSON, with every known secret blacked out."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

from router_backend.service.caller import caller
from router_backend.settings import Settings

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
            text = f"{when:%H:%M:%S} {record.levelname.lower():7} {message}{fields}" + (f"\n{trace}" if trace else "")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _request() -> dict[str, str]:
    """What a line of a request tells of it, wherever in its course the line is written."""
    now = caller.get()
    told = {"request_id": now.request_id, "key": now.key, "trace_id": now.trace_id}
    return {name: value for name, value in told.items() if value}


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)


def configure(settings: Settings) -> None:
    """Sends this package's and uvicorn's records to standard error. Called by the command line only."""
    others = (settings.hf_token, settings.space_hf_token, settings.admin_key)
    secrets = [*settings.api_keys.values(), *(each.get_secret_value() for each in others if each)]
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(as_json=as_json, secrets=tuple(filter(None, secrets))))
    for name, level in (("router_backend", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
