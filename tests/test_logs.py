import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from router_backend.logs import LineFormatter, configure
from router_backend.settings import Settings, load_settings

SECRET, KEY = "hf_NEVERSHOWN", "k-NEVERSHOWN-2"
LOGGERS = ("router_backend", "uvicorn")


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    before = [(logger.handlers, logger.propagate, logger.level) for logger in map(logging.getLogger, LOGGERS)]
    yield
    for logger, (handlers, propagate, level) in zip(map(logging.getLogger, LOGGERS), before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def record(message: str, *args: object, exc_info: Any = None, **extra: object) -> logging.LogRecord:  # noqa: ANN401
    made = logging.getLogger("router_backend.test").makeRecord(
        "router_backend.test", logging.WARNING, "test.py", 1, message, args, exc_info, extra=extra
    )
    made.created = 1_700_000_000.25
    return made


def line(message: str, *args: object, as_json: bool, secrets: tuple[str, ...] = (), **rest: Any) -> str:  # noqa: ANN401
    return LineFormatter(as_json=as_json, secrets=secrets).format(record(message, *args, **rest))


def failure(text: str) -> Any:  # noqa: ANN401 - what logging takes
    try:
        token = text  # a value that a traceback's line may show
        raise ValueError(f"cannot read with {token}")
    except ValueError:
        return sys.exc_info()


# Form


def test_json_is_one_line_with_the_extra_fields() -> None:
    text = line("%s of %d", "one", 2, as_json=True, request_id="r1", seconds=0.5, tags=["é"], nothing=None)
    assert "\n" not in text
    assert json.loads(text) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "warning",
        "logger": "router_backend.test",
        "message": "one of 2",
        "request_id": "r1",
        "seconds": 0.5,
        "tags": ["é"],
        "nothing": None,
    }


def test_json_keeps_any_message_on_one_line() -> None:
    text = line('break\nof "line" 😀 \x00', as_json=True, exc_info=failure("x"))
    assert "\n" not in text
    found = json.loads(text)
    assert found["message"] == 'break\nof "line" 😀 \x00'
    assert found["exception"].startswith("Traceback")
    assert found["exception"].endswith("ValueError: cannot read with x")


def test_json_of_what_json_does_not_know() -> None:
    assert json.loads(line("x", as_json=True, path=Path("/a/b")))["path"] == "/a/b"


def test_lines_for_people() -> None:
    text = line("%s loads", "it", as_json=False, reason='the "first"', seconds=1.23456, count=3, nothing=None)
    assert text == '22:13:20 warning it loads reason="the \\"first\\"" seconds=1.235 count=3'


def test_people_see_tracebacks_below_the_line() -> None:
    text = line("it failed", as_json=False, exc_info=failure("x"), request_id="r1")
    first, second, *_, last = text.splitlines()
    assert first == '22:13:20 warning it failed request_id="r1"'
    assert second == "  Traceback (most recent call last):"
    assert last == "  ValueError: cannot read with x"


def test_a_field_cannot_forge_a_line() -> None:
    text = line("GET", as_json=False, path="/x\n22:13:20 info    all is well")
    assert len(text.splitlines()) == 1


# Secrets


@pytest.mark.parametrize("as_json", [True, False])
def test_row_27_secrets_are_blacked_out_everywhere(as_json: bool) -> None:
    text = line(
        f"direct {SECRET}, %s",
        f"Bearer {KEY}",
        as_json=as_json,
        secrets=(SECRET, KEY),
        exc_info=failure(SECRET),
        headers={"authorization": f"Bearer {KEY}"},
        url=f"https://user:{SECRET}@host/",
        items=[[SECRET]],
    )
    assert "NEVERSHOWN" not in text
    assert text.count("***") >= 6
    assert "direct ***" in text
    assert "cannot read with ***" in text


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("secret", ['quo"te', "back\\slash", "ключ", "tab\there", "a+b=c/d"])
def test_row_27_secrets_of_any_characters(secret: str, as_json: bool) -> None:
    """A field is written as JSON, so the secret in it may be written with escapes."""
    text = line("x", as_json=as_json, secrets=(secret,), field=f"<{secret}>", again={"deep": [f"<{secret}>"]})
    assert secret not in text
    assert json.dumps(secret, ensure_ascii=False)[1:-1] not in text
    assert text.count("<***>") == 2


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("secrets", [("key", "key-and-more"), ("key-and-more", "key")])
def test_row_27_a_secret_that_begins_another_leaves_nothing_of_it(secrets: tuple[str, ...], as_json: bool) -> None:
    assert "and-more" not in line("with key-and-more", as_json=as_json, secrets=secrets)


def test_without_secrets_nothing_is_blacked_out() -> None:
    assert "***" not in line("a message", as_json=False)


# configure


def written(settings: Settings, monkeypatch: pytest.MonkeyPatch, *, terminal: bool, times: int = 1) -> str:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in range(times):
        configure(settings)
    logging.getLogger("router_backend.deep.down").info("hello %s %s", SECRET, KEY, extra={"n": 1})
    logging.getLogger("router_backend").debug("too quiet")
    logging.getLogger("uvicorn.error").info("too quiet")
    logging.getLogger("uvicorn.error").warning("loud")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("log_format", "terminal", "as_json"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("json", True, True),
        ("json", False, True),
        ("human", True, False),
        ("human", False, False),
    ],
)
def test_the_form_of_the_log(log_format: str, terminal: bool, as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(log_format=log_format, hf_token=SECRET, router_api_keys=f"alice:{KEY}")
    text = written(settings, monkeypatch, terminal=terminal)
    first, second = text.splitlines()
    if as_json:
        assert json.loads(first)["message"] == "hello *** ***"
        assert json.loads(first)["n"] == 1
        assert json.loads(second)["message"] == "loud"
    else:
        assert first.endswith("info    hello *** *** n=1")
        assert second.endswith("warning loud")


@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)]
)
def test_row_27_each_secret_setting_is_blacked_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(log_format="human", **{name: f"{name}:{KEY}"})
    text = written(settings, monkeypatch, terminal=True)
    logging.getLogger("router_backend").warning("said %s:%s", name, KEY)
    said = cast("io.StringIO", sys.stderr).getvalue().removeprefix(text)
    assert "***" in said and KEY not in said


def test_no_secret_no_blackening(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty token must not be looked for: it is everywhere."""
    for settings in (load_settings(log_format="human"), load_settings(log_format="human", hf_token="")):
        assert "***" not in written(settings, monkeypatch, terminal=True)


def test_configured_twice_says_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(written(load_settings(), monkeypatch, terminal=False, times=3).splitlines()) == 2


def test_the_log_of_others_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    written(load_settings(), monkeypatch, terminal=False)
    assert (list(root.handlers), root.level) == before
