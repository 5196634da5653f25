"""evaluate: from the gold file to the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from router_backend.client import ClientError, RouterClient
from router_backend.errors import InvalidRequest, RouterError
from router_backend.types import Output
from router_tools.base import writable
from router_tools.evaluate import report
from router_tools.evaluate.local import predictor
from router_tools.evaluate.predictions import Predict, Prediction, Store, predict_all, predict_with, read_predictions
from router_tools.evaluate.results import Evaluation, load_thresholds, score
from router_tools.evaluate.rows import GoldRow, read_gold

_TIMEOUT, _RETRIES = 300.0, 5  # seconds for one answer of a URL; of its answers 429 and 503
MISSING = Prediction(error="there is no prediction for this prompt")


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """One evaluation. The predictions come from `url`, from `candidate` or from a file: exactly one of them.

    Attributes:
        gold: JSONL rows `{"prompt", "completion"}`.
        out: folder for predictions.jsonl, scores.json and report.html.
        predictions: JSONL rows `{"prompt", "text"}`, to score only.
        tools: the specialists that `rules_ok` knows.
        lenient: reads a plan out of prose and fences too; `json_valid` stays strict.
        concurrency: prompts in flight at once.
    """

    gold: Path
    out: Path
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    candidate: str | None = None
    predictions: Path | None = None
    limit: int | None = None
    max_new_tokens: int = 600
    temperature: float = 0.2
    seed: int = 0
    output: Output = "plan"
    tools: tuple[str, ...] = ("/general-search", "/math", "/code")
    lenient: bool = False
    thresholds: Path | None = None
    concurrency: int = 1


def evaluate(options: EvaluateOptions, predict: Predict | None = None, *, console: Console | None = None) -> int:
    """Predicts (or goes on predicting), scores, prints, and writes `scores.json` and `report.html`.

    Args:
        predict: answers a prompt in the place of `candidate`; called from `concurrency` threads.

    Returns:
        0: every threshold holds. 1: one does not.

    Raises:
        RouterError: wrong usage, or the predictions could not be had.
    """
    console = console or Console()
    if sum(each is not None for each in (options.url, options.candidate, options.predictions)) != 1:
        raise InvalidRequest("give one of url, candidate and predictions")
    thresholds = load_thresholds(options.thresholds)
    gold = read_gold(options.gold, options.limit)
    writable(options.out)
    try:
        source, sampling, predictions = _predict(options, gold, predict, console)
    except ClientError as error:
        raise RouterError(str(error)) from None
    rows = [score(row, predictions.get(row.prompt, MISSING), options.tools, lenient=options.lenient) for row in gold]
    result = Evaluation.of(rows, thresholds, source=source, sampling=sampling)
    report.show(result, console)
    report.write(result, options.out)
    console.out(f"written: {options.out / 'scores.json'} and report.html", highlight=False)
    return int(not result.passed)


def _predict(
    options: EvaluateOptions, gold: Sequence[GoldRow], predict: Predict | None, console: Console
) -> tuple[str, dict[str, object], dict[str, Prediction]]:
    """Who was asked, how, and prompt → prediction."""
    if options.predictions is not None:
        predictions = read_predictions(options.predictions)
        if not any(row.prompt in predictions for row in gold):
            raise InvalidRequest(f"{options.predictions} has none of the prompts of {options.gold}")
        return str(options.predictions), {}, predictions
    names = ("max_new_tokens", "temperature", "seed", "output")
    fields: dict[str, Any] = {name: getattr(options, name) for name in names}
    with ExitStack() as stack:
        if options.url is not None:
            try:
                client = stack.enter_context(RouterClient(options.url, options.api_key, _TIMEOUT, _RETRIES))
            except ValueError as error:
                raise InvalidRequest(str(error)) from None
            source, predict = client.url, predict_with(client, fields)
        else:
            source = str(options.candidate)
            predict = predict or stack.enter_context(predictor(source, options.concurrency, **fields))
        store = Store(options.out / "predictions.jsonl")
        how = {"source": source, **fields}
        prompts = [row.prompt for row in gold]
        found = predict_all(prompts, predict, store, how, concurrency=options.concurrency, console=console)
    return source, fields, found
