"""Thresholds: what each bucket's figures must be, read from JSON and applied."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from router_backend.errors import InvalidRequest
from router_tools.evaluate.metrics import BUCKETS, METRICS

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


def load_thresholds(path: Path | None = None) -> list[Threshold]:
    """The thresholds of a file `{bucket: {"at_least": {metric: limit}, "at_most": {…}}}`, or the packaged ones.

    Raises:
        InvalidRequest: no such file, or a name or a figure in it that is wrong.
    """
    source = path or PACKAGED
    try:
        value: object = json.loads(source.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{source}: {error.strerror or 'cannot be read'}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{source}: no JSON: {error}") from None
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
