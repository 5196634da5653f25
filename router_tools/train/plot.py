"""A run's losses as a picture."""

from __future__ import annotations

from pathlib import Path

from router_backend.jsonl import read_values


def plot(log: Path, out: Path) -> None:
    """Draws the training and validation losses of a JSON-lines log into a PNG."""
    from matplotlib.figure import Figure

    events = [event for _, event in read_values(log)]
    steps = [each for each in events if each["event"] == "step"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([each["step"] for each in steps], [each["loss"] for each in steps], alpha=0.3, label="training")
    seen = [each for each in events if each["event"] == "validation"]
    for name in ("reference", "budget_600"):
        points = [(each["step"], each[name]) for each in seen if each.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=f"validation, {name.replace('_', ' ')}")
    axes.set(xlabel="step", ylabel="cross-entropy of a completion token (nats)")
    axes.legend()
    figure.savefig(out, dpi=120)
