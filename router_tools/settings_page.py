"""`docs/settings.md` and `.env.example`, made of the fields of `Settings` by the templates beside this file.

    python -m router_tools.settings_page     # in the repository's root

A test checks that both files are current.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from jinja2 import Environment, PackageLoader, select_autoescape
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


def page() -> str:
    return _filled("settings.md.jinja")


def example() -> str:
    """`.env.example`: each setting with its default, or with an example where it has none."""
    return _filled("settings.env.jinja")


def _filled(name: str) -> str:
    pages = Environment(
        loader=PackageLoader("router_tools", ""),
        autoescape=select_autoescape(),
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    values = {"fields": Settings.model_fields, "groups": GROUPS, "replaced": REPLACED}
    return pages.get_template(name).render(values, text=_text, choices=_choices)


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
    for path, text in (("docs/settings.md", page()), (".env.example", example())):
        Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
