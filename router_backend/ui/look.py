"""How the UI looks: theme, style and keys. System fonts only, so that the page needs nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


_SHADES = {  # in light and in dark
    "body_background_fill": ("*neutral_50", "*neutral_950"),
    "body_text_color_subdued": ("*neutral_600", "*neutral_400"),
    "button_primary_background_fill": ("*primary_600", "*primary_600"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_700"),
    "button_primary_text_color": ("white", "white"),
    "block_info_text_color": ("*neutral_600", "*neutral_400"),
    "input_placeholder_color": ("*neutral_500", "*neutral_400"),
}


def theme() -> gr.themes.Base:
    """Calm, and readable in light and dark."""
    base = gr.themes.Default(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=SANS, font_mono=MONO
    )
    light, dark = ({name: both[at] for name, both in _SHADES.items()} for at in (0, 1))
    return base.set(**light, **{f"{name}_dark": shade for name, shade in dark.items()})


def options() -> dict[str, Any]:
    """What Gradio is told where the page is mounted or launched."""
    return {
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "theme": theme(),
        "css": _file("page.css"),
        "js": _file("page.js"),
        "head": _file("page.html"),
    }


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
