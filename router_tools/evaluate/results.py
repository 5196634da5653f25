"""Results: every row with its figures and findings, what they come to, and the thresholds that they must meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from router_backend.errors import InvalidRequest
from router_backend.jsonl import parse
from router_backend.plan.rules import validate
from router_tools.evaluate.confidence import Confidence
from router_tools.evaluate.metrics import BUCKETS, METRICS, BucketScores, aggregate, read_plan, score_row
from router_tools.evaluate.predictions import Prediction
from router_tools.evaluate.rows import GoldRow

PACKAGED = Path(__file__).with_name("thresholds.json")
_KINDS = ("at_least", "at_most")
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Threshold:
    """One limit on one figure of one bucket."""

    bucket: str
    metric: str
    kind: str
    limit: float

    def __str__(self) -> str:
        return f"{'≥' if self.kind == 'at_least' else '≤'} {self.limit:.2f}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A threshold with what was measured: `passed` is None where the bucket has no row with that figure."""

    threshold: Threshold
    value: float | None

    @property
    def passed(self) -> bool | None:
        if self.value is None:
            return None
        over = self.value - self.threshold.limit
        return (over if self.threshold.kind == "at_least" else -over) >= -_ROUNDING


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A gold row with what was predicted, its figures and what is wrong with it."""

    gold: GoldRow
    prediction: Prediction
    predicted: dict[str, Any] | None
    scores: dict[str, float]
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that the reports tell. `generation` is what the answers cost, as far as that is known.

    `confidence` is how far the probabilities of the first tool can be trusted; None where no answer had them.
    """

    source: str
    sampling: dict[str, object]
    rows: tuple[ScoredRow, ...]
    buckets: dict[str, BucketScores]
    verdicts: tuple[Verdict, ...]
    generation: dict[str, float]
    confidence: Confidence | None = None

    @classmethod
    def of(
        cls, rows: Sequence[ScoredRow], thresholds: Sequence[Threshold], *, source: str, sampling: dict[str, object]
    ) -> Evaluation:
        buckets = aggregate((row.gold.plan, row.scores) for row in rows)
        verdicts = tuple(Verdict(each, buckets[each.bucket].scores.get(each.metric)) for each in thresholds)
        generation = _generation([row.prediction for row in rows])
        told = [(row.prediction.first, row.gold.first) for row in rows if row.prediction.first]
        return cls(source, sampling, tuple(rows), buckets, verdicts, generation, Confidence.of(told) if told else None)

    @property
    def passed(self) -> bool:
        return all(verdict.passed is not False for verdict in self.verdicts)


def score(row: GoldRow, prediction: Prediction, tools: Sequence[str], *, lenient: bool = False) -> ScoredRow:
    """One row's figures, and in words what keeps its plan from being a good one."""
    predicted = read_plan(prediction.text, lenient=lenient)
    scores = score_row(row.plan, predicted, prediction.text, tools)
    if prediction.error is not None:
        findings: tuple[str, ...] = (prediction.error,)
    elif predicted is None:
        findings = ("the text is no JSON object",)
    else:
        findings = tuple(map(str, validate(predicted, tools)[1]))
    return ScoredRow(row, prediction, predicted, scores, findings)


def _generation(predictions: Sequence[Prediction]) -> dict[str, float]:
    seconds = sorted(each.seconds for each in predictions if each.seconds is not None and each.error is None)
    tokens = sorted(each.completion_tokens for each in predictions if each.completion_tokens is not None)
    clipped = [len(each.clipped) for each in predictions if each.clipped is not None]
    figures: dict[str, float] = {"failed": sum(each.error is not None for each in predictions)}
    for name, values in (("seconds", seconds), ("completion_tokens", tokens)):
        if values:
            figures[f"{name}_mean"] = fmean(values)
            for percent in (50, 95):
                figures[f"{name}_p{percent}"] = values[math.ceil(percent * len(values) / 100) - 1]
            figures[f"{name}_max"] = values[-1]
    if clipped:
        figures["clipped_rows_share"] = fmean(map(bool, clipped))
        figures["clipped_texts_mean"] = fmean(clipped)
    return figures


def load_thresholds(path: Path | None = None) -> list[Threshold]:
    """The thresholds of a file `{bucket: {"at_least": {metric: limit}, "at_most": {…}}}`, or the packaged ones.

    Raises:
        InvalidRequest: no such file, or a name or a figure in it that is wrong.
    """
    source = path or PACKAGED
    try:
        value = parse(source.read_bytes(), str(source))
    except OSError as error:
        raise InvalidRequest(f"{source}: {error.strerror or 'cannot be read'}") from None
    found: list[Threshold] = []
    for bucket, kinds in _items(source, "the file", value, BUCKETS):
        for kind, limits in _items(source, bucket, kinds, _KINDS):
            for metric, limit in _items(source, f"{bucket}.{kind}", limits, METRICS):
                if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not math.isfinite(limit):
                    raise InvalidRequest(f"{source}: {bucket}.{kind}.{metric} must be a number")
                found.append(Threshold(bucket, metric, kind, float(limit)))
    return found


def _items(source: Path, where: str, value: object, known: tuple[str, ...]) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{source}: {where} must be a JSON object")
    for key in value:
        if key not in known:
            raise InvalidRequest(f"{source}: {where} has {key!r}, which is none of {', '.join(known)}")
    return list(value.items())
