"""`docs/settings.md` and `.env.example`, made of the fields of `Settings`.

    python -m router_tools.settings_page     # in the repository's root

A test checks that both files are current.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from router_backend.settings import REPLACED, Settings

# The first setting of each group, in the order of the fields.
GROUPS = {
    "model_repo": "The checkpoint",
    "max_new_tokens": "Answers",
    "host": "Address and access",
    "slots": "Load",
    "model_load_strategy": "Checkpoints in safetensors (the transformers engine)",
    "zerogpu_size": "A ZeroGPU Space",
}
_INTRODUCTION = """\
# Settings

Every setting is a variable in the environment or a line in a `.env` file in the working folder; the environment wins.
A wrong value stops the start with one message that names the variable, the value and the choices. `1`, `true`, `yes`
and `on` switch on, `0`, `false`, `no` and `off` switch off. An empty value is the default.

This page is made of `router_backend/settings.py` by `python -m router_tools.settings_page`.
"""
_OTHERS = """
## Variables of the commands

`HF_ROUTER_API` is the URL for `smoke`, `ROUTER_API_KEY` the key for `smoke` and `evaluate`. Both are read from the
environment alone. `HF_HOME` says where the hub's files are kept.

## Names of earlier versions

They have no effect. If one is still set, the log of the start says so.

| name | instead |
|---|---|
"""
_EXAMPLE = """\
# Copy to .env and take away the # where you want another value. The environment wins over this file.
# docs/settings.md describes every name.
"""


def page() -> str:
    """`docs/settings.md`."""
    lines = [_INTRODUCTION]
    for name, field in Settings.model_fields.items():
        if group := GROUPS.get(name):
            lines.append(f"\n## {group}\n\n| name | default | meaning |\n|---|---|---|\n")
        default = _text(field)
        lines.append(
            f"| `{name.upper()}` | {f'`{default}`' if default else ''} | {field.description}{_choices(field)} |\n"
        )
    lines.append(_OTHERS)
    lines += [f"| `{name}` | {instead} |\n" for name, instead in REPLACED.items()]
    return "".join(lines)


def example() -> str:
    """`.env.example`: each setting with its default, or with an example where it has none."""
    lines = [_EXAMPLE]
    for name, field in Settings.model_fields.items():
        if group := GROUPS.get(name):
            lines.append(f"\n# {group}\n")
        lines.append(f"#{name.upper()}={_text(field) or next(iter(field.examples or ['']))}\n")
    return "".join(lines)


def _text(field: FieldInfo) -> str:
    """The default as it is written in the environment; empty where there is none, or where it depends."""
    if field.default in (None, PydanticUndefined):
        return ""
    return str(int(field.default)) if isinstance(field.default, bool) else str(field.default)


def _choices(field: FieldInfo) -> str:
    """The values of a field that has a few, unless the description shows them already."""
    values = [value for value in get_args(field.annotation) if isinstance(value, str)]
    told = field.description or ""
    return "" if all(f"`{value}`" in told for value in values) else f" One of {', '.join(f'`{v}`' for v in values)}."


def main() -> None:
    """Writes both files. Raises OSError."""
    for path, text in (("docs/settings.md", page()), (".env.example", example())):
        Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
