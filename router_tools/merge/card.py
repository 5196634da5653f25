"""The model card of a merged checkpoint: a README that says what it is, how it was made, and how to serve it."""

from __future__ import annotations

from collections.abc import Sequence

from router_backend import __version__


def card(*, title: str, base: str, local: bool, adapter: str, figures: Sequence[tuple[str, str]], serve: str) -> str:
    """Markdown with the front matter that hubs read.

    Args:
        title: the checkpoint's name.
        base: what was merged into; named in the front matter unless it is `local`, where a hub could not find it.
        adapter: name and hash of the adapter.
        figures: what was chosen and measured, in rows.
        serve: what MODEL_REPO is set to.
    """
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [router, merged, lora]"]
    if not local:
        front += [f"base_model: {base}", "base_model_relation: finetune"]
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures)
    return f"""---
{chr(10).join(front)}
---

# {title}

A router checkpoint: it reads a request and writes a routing plan, one JSON object with ten keys. It is {base} with the
LoRA adapter {adapter} added to its weights, so it loads as any checkpoint does, without the adapter. The licence of the
base holds for it.

| | |
|---|---|
{rows}

Serve it with router-backend, which keeps every plan whole, valid and inside its token budget:

    MODEL_REPO={serve} router-backend serve

Made with `router-backend merge` {__version__}.
"""
