"""Shows a plan as a person wants to read it: HTML out of plain values, every text escaped."""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from router_backend.plan.rules import QA

_STEP = re.compile(r"\s*(/[\w-]+)\((.*?)\)?\s*", re.DOTALL)
_TODO = re.compile(r"\s*- \[( |x|X)\] (?:(/[\w-]+|router QA):\s*)?(.*)", re.DOTALL)
_NUMBERED = re.compile(r"\s*(\d+)\.\s+(.*)", re.DOTALL)
_BULLET = re.compile(r"\s*-\s+(?!\[)")
_HUES = 6
_CLIPPED = '<span class="rp-clip" title="stopped by its share of the token budget">truncated</span>'
_DIFFERS = '<span class="rp-diff">differs</span>'
_WAITS = '<p class="rp-waits"><span class="rb-sr">not written yet</span></p>'


def render_plan(
    plan: Mapping[str, object],
    clipped: Collection[str] = (),
    findings: Sequence[str] = (),
    *,
    differs: Collection[str] = (),
    odds: Sequence[float | None] = (),
    waits: bool = False,
) -> str:
    """The plan as HTML. It may lack keys or hold wrong types: what is there is shown.

    `clipped` and `differs` have names such as `route_rationale` and `todo_list[2]`; `findings` is what a check of the
    plan said; `odds` are the probabilities of the steps' tools; `waits` keeps the place of what is not written yet.
    """
    view = _View(plan, frozenset(clipped), frozenset(differs), odds, waits)
    blocks = [
        view.head(),
        _findings(findings),
        view.items("route_plan", "Route", _step, "rp-route"),
        view.prose("route_rationale", "Why this route"),
        view.items("expected_artifacts", "Artifacts", _plain),
        view.items("thinking_outline", "Outline", _numbered, "rp-outline"),
        view.prose("handoff_plan", "Hand-off"),
        view.items("todo_list", "To-dos", _todo, "rp-todo"),
        view.items("acceptance_criteria", "Acceptance criteria", _bullet),
        view.metrics(),
    ]
    return f'<div class="rp">{"".join(blocks)}</div>'


def so_far(text: str) -> dict[str, object]:
    """The fields of a plan whose text is not complete yet."""
    try:
        found = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def render_budget(budget: Mapping[str, Any]) -> str:
    """A bar for each field: the tokens that it was given, those that it used, and what was truncated in it."""
    fields: dict[str, Any] = budget.get("fields") or {}
    most = max((max(each["given"], each["used"]) for each in fields.values()), default=0) or 1
    clipped = [re.split(r"\[", name)[0] for name in budget.get("clipped", ())]
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name.replace("_", " "))}</th>'
        f'<td class="rb-bar"><i style="width:{100 * each["given"] / most:.1f}%"></i>'
        f'<b style="width:{100 * each["used"] / most:.1f}%"></b></td>'
        f"<td>{each['used']} of {each['given']}"
        f"{f' <span class=rp-clip>{clipped.count(name)} truncated</span>' if name in clipped else ''}</td></tr>"
        for name, each in fields.items()
    )
    return f'<table class="rb-table rb-budget"><caption>Tokens used and given, by field</caption>{rows}</table>'


def handoffs(plan: Mapping[str, object]) -> list[tuple[str, str]]:
    """For each step of the route a title, and what its specialist is told: task, to-dos, and from whom it comes."""
    steps = [match for text in _texts(plan.get("route_plan")) if (match := _STEP.fullmatch(text))]
    todos = [match for text in _texts(plan.get("todo_list")) if (match := _TODO.fullmatch(text))]
    found = []
    for at, step in enumerate(steps):
        before = f"{steps[at - 1][1]}: {steps[at - 1][2]}" if at else "the request itself"
        after = steps[at + 1][1] if at + 1 < len(steps) else QA
        mine = [f"- [ ] {todo[3]}" for todo in todos if todo[2] == step[1]]
        parts = [f"You are {step[1]}, step {at + 1} of {len(steps)}.", f"Task: {step[2]}", f"You get: {before}"]
        parts += ["To do:", *mine] if mine else []
        found.append((f"{at + 1}. {step[1]}", "\n".join([*parts, f"Hand over to: {after}"])))
    return found


def copies(texts: Iterable[tuple[str, str]]) -> str:
    """Texts to copy, each folded under its title."""
    return "".join(
        f'<details class="rb-copy"><summary>{html.escape(title)}</summary>'
        f'<button type="button" aria-label="Copy {html.escape(title)}">Copy</button>'
        f'<pre tabindex="0">{html.escape(text)}</pre></details>'
        for title, text in texts
    )


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of plain values; a narrow window scrolls it."""
    head = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="rb-wide" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table class="rb-table">'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class _View:
    def __init__(
        self,
        plan: Mapping[str, object],
        clipped: Collection[str],
        differs: Collection[str],
        odds: Sequence[float | None],
        waits: bool,
    ) -> None:
        self._plan, self._clipped, self._differs = plan, clipped, differs
        self._odds, self._waits = odds, waits

    def head(self) -> str:
        difficulty = _texts(self._plan.get("difficulty"))
        chips = [f'<span class="rp-chip rp-level">{html.escape(text)}</span>' for text in difficulty]
        tags = _texts(self._plan.get("tags"))
        chips += [
            f'<span class="rp-chip">{html.escape(tag)}</span>{self._mark("tags", index)}'
            for index, tag in enumerate(tags)
        ]
        marks = self._mark("difficulty") + self._mark("tags")
        return f'<p class="rp-chips">{"".join(chips)}{marks}</p>' if chips or self._waits else ""

    def prose(self, key: str, title: str) -> str:
        body = "".join(f"<p>{html.escape(text)}</p>" for text in _texts(self._plan.get(key)))
        return self._section(title, body, self._mark(key))

    def items(self, key: str, title: str, show: Callable[[str, str], str], style: str = "rp-list") -> str:
        texts = _texts(self._plan.get(key))
        return self._section(title, self._list(texts, key, show, style), self._mark(key))

    def metrics(self) -> str:
        metrics = self._plan.get("metrics")
        if not isinstance(metrics, Mapping):
            return self.items("metrics", "Metrics", _bullet)
        parts = []
        for name, value in metrics.items():
            key = f"metrics.{name}"
            title = html.escape(str(name).replace("_", " "))
            parts.append(f"<h3>{title}{self._mark(key)}</h3>{self._list(_texts(value), key, _bullet, 'rp-list')}")
        return self._section("Metrics", "".join(parts), self._mark("metrics"))

    def _section(self, title: str, body: str, mark: str) -> str:
        body = body or (_WAITS if self._waits else "")
        return f"<section><h2>{title}{mark}</h2>{body}</section>" if body else ""

    def _list(self, texts: Sequence[str], key: str, show: Callable[[str, str], str], style: str) -> str:
        rows = [f"<li>{show(text, self._mark(key, index))}</li>" for index, text in enumerate(texts)]
        tag = "ol" if style == "rp-route" else "ul"
        return f'<{tag} class="{style}">{"".join(rows)}</{tag}>' if rows else ""

    def _mark(self, key: str, index: int | None = None) -> str:
        name = key if index is None else f"{key}[{index}]"
        chance = self._odds[index] if key == "route_plan" and index is not None and index < len(self._odds) else None
        marks = f' <span class="rp-odds">{chance:.0%} sure</span>' if chance else ""
        marks += f" {_CLIPPED}" if name in self._clipped else ""
        return f"{marks} {_DIFFERS}" if name in self._differs else marks


def _findings(findings: Sequence[str]) -> str:
    rows = "".join(f"<li>{html.escape(text)}</li>" for text in findings)
    return f'<section class="rp-findings"><h2>Findings of the check</h2><ul>{rows}</ul></section>' if rows else ""


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
