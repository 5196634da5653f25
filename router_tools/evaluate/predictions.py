"""Predictions: asked for with a few threads, and kept on disk as they come, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from router_backend.client import ClientError, RouterClient, Unreachable
from router_backend.errors import InvalidRequest, LoadError, RouterError
from router_tools.evaluate.metrics import part
from router_tools.evaluate.rows import json_lines

_PLAIN_LINES = 10
_REFUSED_FOR_ALL = (401, 403, 404, 405)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a checkpoint answered to one prompt, with what is known about it.

    Attributes:
        seconds: from the question to the whole answer.
        clipped: the texts that were stopped by their limit.
        first: the probabilities of a plan's first tool; None where they are not known.
        error: why there is no text.
    """

    text: str = ""
    seconds: float | None = None
    completion_tokens: int | None = None
    clipped: tuple[str, ...] | None = None
    finish_reason: str | None = None
    first: dict[str, float] | None = None
    error: str | None = None


Predict = Callable[[str], Prediction]


class Store:
    """`predictions.jsonl`: one line a prediction; the last one of a key holds."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, Prediction]:
        """All that was kept. A last line that was cut off is taken away, so that the next one starts afresh."""
        if not self._path.exists():
            return {}
        with self._path.open("r+b") as file:
            kept = file.read()
            file.truncate(kept.rfind(b"\n") + 1)
        return {str(value.get("key")): prediction_of(value) for _, value in json_lines(self._path)}

    def append(self, key: str, prompt: str, prediction: Prediction) -> None:
        line = json.dumps({"key": key, "prompt": prompt, **asdict(prediction)})
        with self._path.open("a", encoding="ascii", newline="\n") as file:
            file.write(line + "\n")


def prediction_of(value: Mapping[str, Any]) -> Prediction:
    """A prediction out of a JSON object; what is missing or of another type stays unknown."""

    def typed(key: str, *types: type) -> Any:  # noqa: ANN401 - one of `types`
        return value.get(key) if isinstance(value.get(key), types) else None

    clipped, first = typed("clipped", list, tuple), typed("first", dict)
    known = first and all(isinstance(each, float | int) and 0 <= each <= 1 for each in first.values())
    return Prediction(
        text=typed("text", str) or "",
        seconds=typed("seconds", float, int),
        completion_tokens=typed("completion_tokens", int),
        clipped=None if clipped is None else tuple(map(str, clipped)),
        finish_reason=typed("finish_reason", str),
        first={str(tool): float(each) for tool, each in first.items()} if known else None,
        error=typed("error", str),
    )


def read_predictions(path: Path, content: bytes | None = None) -> dict[str, Prediction]:
    """Prompt → prediction, out of rows `{"prompt", "text"}`; the last one of a prompt holds. As `read_lines` reads.

    Raises:
        InvalidRequest: no such file, or a row that is wrong.
    """
    found: dict[str, Prediction] = {}
    for line, value in json_lines(path, content):
        if not isinstance(value.get("prompt"), str) or not isinstance(value.get("text"), str):
            raise InvalidRequest(f"{path}, line {line}: must have prompt and text, both texts")
        found[value["prompt"]] = prediction_of(value)
    return found


def predict_with(client: RouterClient, fields: Mapping[str, object]) -> Predict:
    """Asks a deployed router. A failed row is a prediction with an error; a router that is away ends the run.

    Raises (the function that is returned):
        ClientError: no further row can be answered either.
    """

    def predict(prompt: str) -> Prediction:
        try:
            body = client.generate(prompt, **fields, details=True)
        except ClientError as error:
            if isinstance(error, Unreachable) or error.status in _REFUSED_FOR_ALL:
                raise
            return Prediction(error=str(error))
        details = part(body, "details")
        route = details.get("route")
        step = route[0] if isinstance(route, list) and route else None
        return prediction_of(
            {
                "text": body["text"],
                "completion_tokens": part(details, "usage").get("completion_tokens"),
                "clipped": part(details, "budget").get("clipped"),
                "finish_reason": details.get("finish_reason"),
                "first": step.get("probabilities") if isinstance(step, dict) else None,
            }
        )

    return predict


def predict_all(
    prompts: Sequence[str],
    predict: Predict,
    store: Store,
    sampling: Mapping[str, object],
    *,
    concurrency: int,
    console: Console,
) -> dict[str, Prediction]:
    """Prompt → prediction, asking only for what the store has not; what failed before is asked again.

    `predict` is called from `concurrency` threads. What it raises, other than an answer's `RouterError`, ends the run.
    """
    # What makes a prediction the same: the prompt, who is asked, and how to draw.
    same = {prompt: json.dumps([prompt, sampling], sort_keys=True).encode() for prompt in prompts}
    keys = {prompt: hashlib.sha256(each).hexdigest()[:32] for prompt, each in same.items()}
    kept = store.load()
    found = {prompt: kept[key] for prompt, key in keys.items() if key in kept and kept[key].error is None}
    missing = [prompt for prompt in keys if prompt not in found]
    if found:
        console.out(f"{len(found)} of {len(keys)} predictions are there already", highlight=False)
    lock = Lock()
    lost: list[LoadError] = []

    def ask(prompt: str) -> None:
        if lost:
            raise lost[0]
        began = time.monotonic()
        try:
            prediction = predict(prompt)
        except LoadError as error:
            lost.append(error)  # no other prompt would load it
            raise
        except RouterError as error:
            prediction = Prediction(error=error.message)
        if prediction.seconds is None:
            prediction = replace(prediction, seconds=round(time.monotonic() - began, 3))
        # Here and not where the run waits: what is in flight when it is interrupted is kept too.
        with lock:
            store.append(keys[prompt], prompt, prediction)
            found[prompt] = prediction
            advance(prediction)

    with _progress(console, len(keys), len(found)) as advance, ThreadPoolExecutor(concurrency) as pool:
        try:
            for future in as_completed([pool.submit(ask, prompt) for prompt in missing]):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


@contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[Callable[[Prediction], None]]:
    """A bar on a terminal, a few lines elsewhere."""
    failed = 0
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    plain = not console.is_terminal
    with Progress(TextColumn("predictions"), BarColumn(), *columns, console=console, disable=plain) as bar:
        task = bar.add_task("predictions", total=total, completed=done, note="")

        def advance(prediction: Prediction) -> None:
            nonlocal failed, done
            done += 1
            failed += prediction.error is not None
            bar.update(task, completed=done, note=f"{failed} failed" if failed else "")
            if plain and (done == total or done * _PLAIN_LINES // total > (done - 1) * _PLAIN_LINES // total):
                console.out(f"{done} of {total} predictions, {failed} failed", highlight=False)

        yield advance
