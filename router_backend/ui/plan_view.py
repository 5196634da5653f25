"""Shows a plan as a person wants to read it: HTML out of plain values, every text escaped."""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence

_STEP = re.compile(r"\s*(/[\w-]+)\((.*)\)\s*", re.DOTALL)
_TODO = re.compile(r"\s*- \[( |x|X)\] (?:(/[\w-]+|router QA):\s*)?(.*)", re.DOTALL)
_NUMBERED = re.compile(r"\s*(\d+)\.\s+(.*)", re.DOTALL)
_BULLET = re.compile(r"\s*-\s+(?!\[)")
_HUES = 6
_CLIPPED = '<span class="rp-clip" title="stopped by its share of the token budget">clipped</span>'


def render_plan(plan: Mapping[str, object], clipped: Sequence[str], findings: Sequence[str] = ()) -> str:
    """The plan as HTML. It may lack keys or hold wrong types: what is there is shown.

    `clipped` has names such as `route_rationale` and `todo_list[2]`; `findings` is what a check of the plan said.
    """
    view = _View(plan, frozenset(clipped))
    blocks = [
        view.head(),
        _findings(findings),
        view.items("route_plan", "Route", _step, "rp-route"),
        view.prose("route_rationale", "Why this route"),
        view.items("todo_list", "To-dos", _todo, "rp-todo"),
        view.items("thinking_outline", "Outline", _numbered, "rp-outline"),
        view.prose("handoff_plan", "Hand-off"),
        view.items("expected_artifacts", "Artifacts", _plain),
        view.items("acceptance_criteria", "Acceptance criteria", _bullet),
        view.metrics(),
    ]
    return f'<div class="rp">{"".join(blocks)}</div>'


class _View:
    def __init__(self, plan: Mapping[str, object], clipped: Collection[str]) -> None:
        self._plan = plan
        self._clipped = clipped

    def head(self) -> str:
        difficulty = _texts(self._plan.get("difficulty"))
        chips = [f'<span class="rp-chip rp-level">{html.escape(text)}</span>' for text in difficulty]
        tags = _texts(self._plan.get("tags"))
        chips += [
            f'<span class="rp-chip">{html.escape(tag)}</span>{self._mark("tags", index)}'
            for index, tag in enumerate(tags)
        ]
        marks = self._mark("difficulty") + self._mark("tags")
        return f'<p class="rp-chips">{"".join(chips)}{marks}</p>' if chips else ""

    def prose(self, key: str, title: str) -> str:
        body = "".join(f"<p>{html.escape(text)}</p>" for text in _texts(self._plan.get(key)))
        return _section(title, body, self._mark(key))

    def items(self, key: str, title: str, show: Callable[[str, str], str], style: str = "rp-list") -> str:
        texts = _texts(self._plan.get(key))
        return _section(title, self._list(texts, key, show, style), self._mark(key))

    def metrics(self) -> str:
        metrics = self._plan.get("metrics")
        if not isinstance(metrics, Mapping):
            return self.items("metrics", "Metrics", _bullet)
        parts = []
        for name, value in metrics.items():
            key = f"metrics.{name}"
            title = html.escape(str(name).replace("_", " "))
            parts.append(f"<h4>{title}{self._mark(key)}</h4>{self._list(_texts(value), key, _bullet, 'rp-list')}")
        return _section("Metrics", "".join(parts), self._mark("metrics"))

    def _list(self, texts: Sequence[str], key: str, show: Callable[[str, str], str], style: str) -> str:
        rows = [f"<li>{show(text, self._mark(key, index))}</li>" for index, text in enumerate(texts)]
        tag = "ol" if style == "rp-route" else "ul"
        return f'<{tag} class="{style}">{"".join(rows)}</{tag}>' if rows else ""

    def _mark(self, key: str, index: int | None = None) -> str:
        name = key if index is None else f"{key}[{index}]"
        return f" {_CLIPPED}" if name in self._clipped else ""


def _section(title: str, body: str, mark: str) -> str:
    return f"<section><h3>{title}{mark}</h3>{body}</section>" if body else ""


def _findings(findings: Sequence[str]) -> str:
    rows = "".join(f"<li>{html.escape(text)}</li>" for text in findings)
    return f'<section class="rp-findings"><h3>Findings of the check</h3><ul>{rows}</ul></section>' if rows else ""


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    if isinstance(value, Mapping):
        return [f"{key}: {item}" for key, item in value.items()]
    return [str(value)]


def _badge(tool: str) -> str:
    # By name and not by place, so that a tool looks the same in every plan.
    hue = zlib.crc32(tool.encode()) % _HUES
    return f'<span class="rp-tool rp-hue-{hue}">{html.escape(tool)}</span>'


def _step(text: str, mark: str) -> str:
    match = _STEP.fullmatch(text)
    if match is None:
        return f"<span>{html.escape(text)}{mark}</span>"
    return f"{_badge(match[1])}<span>{html.escape(match[2])}{mark}</span>"


def _todo(text: str, mark: str) -> str:
    match = _TODO.fullmatch(text)
    if match is None:
        return f"<span>{html.escape(text)}{mark}</span>"
    done = match[1] != " "
    box = f'<span class="rp-box" role="img" aria-label="{"done" if done else "open"}">{"✓" if done else ""}</span>'
    tool = f"{_badge(match[2])} " if match[2] else ""
    return f"{box}<span>{tool}{html.escape(match[3])}{mark}</span>"


def _numbered(text: str, mark: str) -> str:
    match = _NUMBERED.fullmatch(text)
    if match is None:
        return f"<span>{html.escape(text)}{mark}</span>"
    return f'<span class="rp-number">{match[1]}.</span><span>{html.escape(match[2])}{mark}</span>'


def _bullet(text: str, mark: str) -> str:
    return html.escape(_BULLET.sub("", text, count=1)) + mark


def _plain(text: str, mark: str) -> str:
    return html.escape(text) + mark
