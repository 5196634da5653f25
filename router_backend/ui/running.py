"""What the tabs that ask for something share: a button to begin, one to stop, and where trouble is told."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from router_backend.errors import RouterError
from router_backend.ui.plan_view import parts

_log = logging.getLogger(__name__)
News = dict[Any, Any]  # what is new of each component
# What comes is checked by our own bodies: Gradio's checks tell what was sent, and print it.
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}


@dataclass(frozen=True)
class Running:
    begin: gr.Button
    stop: gr.Button
    notice: gr.HTML

    def begun(self) -> News:
        return {
            self.notice: gr.HTML(visible=False),
            self.begin: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
        }

    def ended(self, title: str = "", trouble: str | None = None, style: str = "") -> News:
        """One may begin again; `trouble` is told where there is any."""
        told = {self.notice: gr.HTML(parts.alert(title, trouble, style), visible=True)} if trouble else {}
        return {**told, self.begin: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def ask(
        self,
        work: Callable[..., AsyncIterator[News]],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        stopped: Callable[[], News],
    ) -> Any:  # noqa: ANN401 - Gradio's event, for what comes after it
        """`work` begins at the one button; the other ends it, and then `stopped` says what is new."""
        shown = [*outputs, self.notice, self.begin, self.stop]
        event = self.begin.click(work, inputs=list(inputs), outputs=shown, **HIDDEN)
        self.stop.click(stopped, outputs=shown, cancels=[event], **HIDDEN)
        return event


def trouble_of(error: Exception) -> str:
    """What went wrong and what to do; of a defect of ours the log says more."""
    if not isinstance(error, RouterError):
        _log.exception("unhandled error in the UI")
        return "internal error; the server's log says more"
    later = f" Try again in {error.retry_after:.0f} s." if error.retry_after else ""
    return error.message + later
