"""Everything that can go wrong, as one tree.

    RouterError                      500
    ├── InvalidRequest               400  the client's fault
    │   ├── ContextOverflow          400  prompt and budget do not fit in the context
    │   ├── BudgetTooSmall           400  no whole plan fits in the budget
    │   └── DurationTooLong          400  more GPU seconds than one call may have
    ├── Unauthorized                 401
    ├── Forbidden                    403
    ├── UnknownModel                 404  another model than the one that is served
    ├── RequestTimeout               408  the body came too slowly
    ├── PayloadTooLarge              413
    ├── UrlTooLong                   414
    ├── UnsupportedMediaType         415
    ├── WrongHost                    421  a name that this server does not go by
    ├── HeadersTooLarge              431
    ├── Overloaded                   429  the queue is full; retry later
    │   ├── RateLimited              429  the key has had its share; retry later
    │   └── QuotaExceeded            429  the caller's GPU seconds are used up; retry later
    ├── EngineError                  500  the engine failed during this request
    │   ├── GrammarFailed            500  a grammar became too costly to go on with
    │   ├── OutOfMemory              503  there was no memory for it; retry later
    │   ├── EngineLost               503  the engine died or hung and is started again; retry later
    │   ├── UpstreamError            502  the server upstream answered nonsense, or broke off
    │   └── UpstreamDown             503  it cannot be reached or says nothing; retry later
    ├── PlanError                    502  the checkpoint's answer is no plan, even after the retry
    ├── AnswerError                  502  it does not keep the client's schema, even after the retry
    ├── GpuAborted                   502  the GPU was taken away, or its process died
    ├── NotReady                     503  loading, failed or shutting down; retry later
    │   └── NoGpu                    503  none is free; retry later
    ├── DeadlineExceeded             504
    ├── SettingsError                     a variable is wrong: stops the start
    ├── HubError                          a hub refuses what a command writes there
    └── LoadError                         a checkpoint did not load
        ├── CandidateError                → next candidate
        └── RungError                     → next rung of the same candidate

`status`, `type` and `code` go to the client as they are, so they never hold anything but fixed words; `message` is
written for the person who reads it and never holds a secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

# What a terminal acts on or takes for the end of a line, and JSON leaves as it is. A tab does neither.
_CONTROLS = {n: f"\\u{n:04x}" for n in (*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029)}


def printable(text: str) -> str:
    """A text that somebody else may have written, for a terminal or a log: no character of it acts on them."""
    return text.translate(_CONTROLS)


class RouterError(Exception):
    """Base of all errors of this package.

    Attributes:
        status: HTTP status.
        type: OpenAI's error type.
        code: stable, machine-readable name.
        param: the request field or variable that is wrong, if one is.
        retry_after: seconds after which a retry may help; None where it never does.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"

    def __init_subclass__(cls, status: int | None = None, type: str | None = None, code: str | None = None) -> None:
        """What is not given is as its family's."""
        cls.status, cls.type, cls.code = status or cls.status, type or cls.type, code or cls.code

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code


class InvalidRequest(RouterError, status=400, type="invalid_request_error", code="invalid_request"): ...


class ContextOverflow(InvalidRequest, code="context_length_exceeded"): ...


class BudgetTooSmall(InvalidRequest, code="budget_too_small"): ...


class DurationTooLong(InvalidRequest, code="gpu_duration_too_long"): ...


class Unauthorized(RouterError, status=401, type="authentication_error", code="invalid_api_key"): ...


class Forbidden(RouterError, status=403, type="permission_error", code="forbidden"): ...


class UnknownModel(RouterError, status=404, type="invalid_request_error", code="model_not_found"): ...


class RequestTimeout(RouterError, status=408, type="invalid_request_error", code="request_timeout"): ...


class PayloadTooLarge(RouterError, status=413, type="invalid_request_error", code="payload_too_large"): ...


class UrlTooLong(RouterError, status=414, type="invalid_request_error", code="url_too_long"): ...


class UnsupportedMediaType(RouterError, status=415, type="invalid_request_error", code="unsupported_media_type"): ...


class WrongHost(RouterError, status=421, type="invalid_request_error", code="wrong_host"): ...


class HeadersTooLarge(RouterError, status=431, type="invalid_request_error", code="headers_too_large"): ...


class Overloaded(RouterError, status=429, type="rate_limit_error", code="overloaded"): ...


class RateLimited(Overloaded, code="rate_limit_exceeded"): ...


class QuotaExceeded(Overloaded, code="gpu_quota_exceeded"): ...


class EngineError(RouterError, code="engine_error"): ...


class GrammarFailed(EngineError):
    """A grammar became too costly to go on with; the answer so far keeps it."""


class OutOfMemory(EngineError, status=503, code="out_of_memory"): ...


class EngineLost(EngineError, status=503, code="engine_lost"): ...


class UpstreamError(EngineError, status=502, code="upstream_failed"): ...


class UpstreamDown(EngineError, status=503, code="upstream_down"): ...


class PlanError(RouterError, status=502, code="invalid_plan"): ...


class AnswerError(RouterError, status=502, code="invalid_answer"): ...


class GpuAborted(RouterError, status=502, code="gpu_aborted"): ...


class NotReady(RouterError, status=503, type="unavailable_error", code="not_ready"): ...


class NoGpu(NotReady, code="no_gpu"): ...


class DeadlineExceeded(RouterError, status=504, type="timeout_error", code="deadline_exceeded"): ...


class SettingsError(RouterError, code="invalid_settings"): ...


class HubError(RouterError, code="hub_failed"): ...


class LoadError(RouterError, code="load_failed"): ...


class CandidateError(LoadError):
    """This checkpoint cannot be had at all: no such repo, no access, broken, engine not installed."""


class RungError(LoadError):
    """This checkpoint does not load in this precision: out of memory, no accelerator, unsupported."""


def words_of(error: BaseException) -> str:
    """An error of a library in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever the libraries raise over a checkpoint becomes a CandidateError that begins with `what`.

    It may be any error at all, and the tokenizers' library panics, which is no Exception.
    """
    try:
        yield
    except (RouterError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CandidateError(f"{what}: {words_of(error)}") from None
