import ast
import inspect
import re
from collections.abc import Iterator

import pytest

from router_backend import errors
from router_backend.errors import (
    AnswerError,
    BudgetTooSmall,
    CandidateError,
    ContextOverflow,
    DeadlineExceeded,
    DurationTooLong,
    EngineError,
    EngineLost,
    Forbidden,
    GpuAborted,
    GrammarFailed,
    HeadersTooLarge,
    HubError,
    InvalidRequest,
    LoadError,
    NoGpu,
    NotReady,
    OutOfMemory,
    Overloaded,
    PayloadTooLarge,
    PlanError,
    QuotaExceeded,
    RateLimited,
    RequestTimeout,
    RouterError,
    RungError,
    SettingsError,
    Unauthorized,
    UnknownModel,
    UnsupportedMediaType,
    UpstreamDown,
    UpstreamError,
    UrlTooLong,
    WrongHost,
)

CLIENTS = ("invalid_request_error", "authentication_error", "permission_error", "rate_limit_error")
TABLE: list[tuple[type[RouterError], type[Exception], int, str, str]] = [
    (RouterError, Exception, 500, "server_error", "internal_error"),
    (InvalidRequest, RouterError, 400, "invalid_request_error", "invalid_request"),
    (ContextOverflow, InvalidRequest, 400, "invalid_request_error", "context_length_exceeded"),
    (BudgetTooSmall, InvalidRequest, 400, "invalid_request_error", "budget_too_small"),
    (DurationTooLong, InvalidRequest, 400, "invalid_request_error", "gpu_duration_too_long"),
    (Unauthorized, RouterError, 401, "authentication_error", "invalid_api_key"),
    (Forbidden, RouterError, 403, "permission_error", "forbidden"),
    (UnknownModel, RouterError, 404, "invalid_request_error", "model_not_found"),
    (RequestTimeout, RouterError, 408, "invalid_request_error", "request_timeout"),
    (PayloadTooLarge, RouterError, 413, "invalid_request_error", "payload_too_large"),
    (UrlTooLong, RouterError, 414, "invalid_request_error", "url_too_long"),
    (UnsupportedMediaType, RouterError, 415, "invalid_request_error", "unsupported_media_type"),
    (WrongHost, RouterError, 421, "invalid_request_error", "wrong_host"),
    (HeadersTooLarge, RouterError, 431, "invalid_request_error", "headers_too_large"),
    (Overloaded, RouterError, 429, "rate_limit_error", "overloaded"),
    (RateLimited, Overloaded, 429, "rate_limit_error", "rate_limit_exceeded"),
    (QuotaExceeded, Overloaded, 429, "rate_limit_error", "gpu_quota_exceeded"),
    (EngineError, RouterError, 500, "server_error", "engine_error"),
    (GrammarFailed, EngineError, 500, "server_error", "engine_error"),
    (OutOfMemory, EngineError, 503, "server_error", "out_of_memory"),
    (EngineLost, EngineError, 503, "server_error", "engine_lost"),
    (UpstreamError, EngineError, 502, "server_error", "upstream_failed"),
    (UpstreamDown, EngineError, 503, "server_error", "upstream_down"),
    (PlanError, RouterError, 502, "server_error", "invalid_plan"),
    (AnswerError, RouterError, 502, "server_error", "invalid_answer"),
    (GpuAborted, RouterError, 502, "server_error", "gpu_aborted"),
    (NotReady, RouterError, 503, "unavailable_error", "not_ready"),
    (NoGpu, NotReady, 503, "unavailable_error", "no_gpu"),
    (DeadlineExceeded, RouterError, 504, "timeout_error", "deadline_exceeded"),
    (SettingsError, RouterError, 500, "server_error", "invalid_settings"),
    (HubError, RouterError, 500, "server_error", "hub_failed"),
    (LoadError, RouterError, 500, "server_error", "load_failed"),
    (CandidateError, LoadError, 500, "server_error", "load_failed"),
    (RungError, LoadError, 500, "server_error", "load_failed"),
]


def tree(root: type[RouterError]) -> Iterator[type[RouterError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def defined() -> list[type[RouterError]]:
    """The classes of the module, in the order of its text."""
    body = ast.parse(inspect.getsource(errors)).body
    return [getattr(errors, node.name) for node in body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize(("cls", "parent", "status", "type_", "code"), TABLE, ids=[row[0].__name__ for row in TABLE])
def test_every_error(cls: type[RouterError], parent: type[Exception], status: int, type_: str, code: str) -> None:
    assert cls.__bases__ == (parent,)
    error = cls("what is wrong")
    assert (error.status, error.type, error.code) == (status, type_, code)
    assert error.message == str(error) == "what is wrong"
    assert error.param is None
    assert error.retry_after is None


def test_the_table_above_is_whole() -> None:
    assert [row[0] for row in TABLE] == defined()


def test_every_subclass_of_the_package_has_fixed_words_and_a_status_of_http() -> None:
    import router_backend.checkpoints.ladder  # noqa: F401 - has a subclass of its own

    found = list(tree(RouterError))
    assert {cls.__name__ for cls in found} >= {cls.__name__ for cls in defined()} | {"NothingLoads"}
    for cls in found:
        assert 400 <= cls.status < 600
        assert re.fullmatch(r"[a-z_]+_error", cls.type)
        assert re.fullmatch(r"[a-z_]+", cls.code)
        assert (cls.type in CLIENTS) == (cls.status < 500)


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """Name → (parent, status) as the docstring draws them."""
    found: dict[str, tuple[str | None, int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ((?:│   |    )*)((?:├── |└── )?)(\w+)(?: +(\d{3}))?(?: +\S.*)?", line)
        if match is None or not match[3][0].isupper():
            continue
        depth = len(match[1] + match[2]) // 4
        path = [*path[:depth], match[3]]
        found[match[3]] = (path[depth - 1] if depth else None, int(match[4]) if match[4] else None)
    return found


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    found = drawn()
    assert list(found) == [cls.__name__ for cls in defined()]
    for cls in defined():
        parent, status = found[cls.__name__]
        assert parent == (None if cls is RouterError else cls.__bases__[0].__name__)
        at_start = issubclass(cls, (SettingsError, errors.HubError, LoadError))
        assert status == (None if at_start else cls.status)


def test_param_code_and_retry_after_are_this_errors_own() -> None:
    error = Overloaded("full", param="n", code="queue_full", retry_after=2.5)
    assert (error.param, error.code, error.retry_after) == ("n", "queue_full", 2.5)
    assert Overloaded.code == Overloaded("full").code == "overloaded"


def test_errors_are_caught_by_their_family() -> None:
    for cls in (ContextOverflow, BudgetTooSmall):
        with pytest.raises(InvalidRequest):
            raise cls("no")
    for load_error in (CandidateError, RungError):
        with pytest.raises(LoadError):
            raise load_error("no")
    assert not issubclass(CandidateError, RungError)
    assert not issubclass(RungError, CandidateError)
