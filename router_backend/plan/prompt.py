"""The canonical router prompt: the one that the reference rows were written for, to the byte."""

from __future__ import annotations

from router_backend.plan.schema import KEYS

INSTRUCTIONS = """\
You are the Router Agent coordinating Math, Code, and General-Search specialists.
Given the user query, respond with a JSON object describing the full routing plan.

Requirements:
- STRICT JSON with double quotes and no extra commentary.
- Keys: route_plan, route_rationale, expected_artifacts, thinking_outline,
  handoff_plan, todo_list, difficulty, tags, acceptance_criteria, metrics.
- route_plan must be an ordered list of tool invocations.
- Use the original phrasing when possible.

User query:
"""
_FIRST_LINE = INSTRUCTIONS.partition("\n")[0]
BUDGET_LINE = "\n\nToken budget: {tokens}\n"
# What says of an adapter, a GGUF (metadata, both) and a folder (config.json) that it was trained with that line.
BUDGET_KEY = "router.budget_line"


def router_prompt(
    query: str,
    *,
    context: str | None = None,
    acceptance: str | None = None,
    guidance: str | None = None,
    difficulty: str | None = None,
    tags: tuple[str, ...] = (),
) -> str:
    """The prompt for a query: the instructions before it, unless it brings them itself.

    The optional parts follow the query, so that the prefix stays the same for all.
    """
    head = "" if query.lstrip().startswith(_FIRST_LINE) else INSTRUCTIONS
    parts = [query.strip()]
    extras = (
        ("Context", context),
        ("Acceptance criteria", acceptance),
        ("Guidance", guidance),
        ("Difficulty", difficulty),
        ("Tags", ", ".join(tags)),
    )
    parts += [f"{title}:\n{text.strip()}" for title, text in extras if text and text.strip()]
    return head + "\n\n".join(parts) + "\n"


def is_routers_own(text: str) -> bool:
    """Whether a text asks for a plan itself: it names the ten keys, as the canonical prompt does."""
    return all(key in text for key in KEYS)


def with_budget(prompt: str, tokens: int) -> str:
    """The prompt for a checkpoint that was trained to write to a budget; others never see that line."""
    return prompt.rstrip("\n") + BUDGET_LINE.format(tokens=tokens)
