"""loss.png: the curves as one picture, for a chat, a README or a terminal without a browser."""

from __future__ import annotations

import io

from sparrowlm.report.curves import frame, quantile, settled, smooth
from sparrowlm.report.read import Points, Run, points
from sparrowlm.report.verdict import yardsticks

INK, ACCENT, FAINT, GRID = "#26221d", "#b4532a", "#cfc8bd", "#e9e4da"


def draw_loss(run: Run) -> bytes:
    """A PNG of the loss and, where they are known, bits per byte beside the compressors.

    Matplotlib's objects and not pyplot, whose current figure is state that outlives a call.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = {
        "loss, nats per token": ("loss", "val_loss"),
        "bits per byte": ("bits_per_byte", "val_bits_per_byte"),
    }
    shown = {
        title: (points(run.train, train), points(run.evals, held_out))
        for title, (train, held_out) in lines.items()
    }
    panels = [title for title, pair in shown.items() if any(pair)] or ["loss, nats per token"]
    figure = Figure(figsize=(6.4 * len(panels), 4.2), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for index, title in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        rules = yardsticks(run) if title == "bits per byte" else []
        named = [(entry.name, entry.value) for entry in rules]
        _panel(axes, title, *shown[title], named)
        if index == 0 and any(shown[title]):
            axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right")
    content = io.BytesIO()
    canvas.print_png(content)
    return content.getvalue()


def _panel(axes, title: str, train: Points, held_out: Points, rules) -> None:
    """One set of axes: training faint and smoothed, held out in the accent color, rules dashed."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("step", color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=INK)
    if train:
        dot = "." if len(train) == 1 else ""
        axes.plot(*_columns(train), color=FAINT, linewidth=0.7, label="training", zorder=1)
        axes.plot(*_columns(smooth(train)), color=INK, linewidth=1.3, marker=dot, label="smoothed")
    if held_out:
        dot = "o" if len(held_out) <= 60 else ""
        axes.plot(
            *_columns(held_out),
            color=ACCENT,
            linewidth=1.6,
            marker=dot,
            markersize=3.2,
            label="held out",
        )
    for name, value in rules:
        axes.axhline(value, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"{name} {value:.3f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=INK,
        )
    _limits(axes, train, held_out, [value for _, value in rules])
    if not train and not held_out:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center")


def _limits(axes, train: Points, held_out: Points, rules: list[float]) -> None:
    """Frame what follows the first fall."""
    values = list(rules)
    if train:
        calm = settled(train)
        values += [quantile(calm, 0.003), quantile(calm, 0.997)]
        values += [value for _, value in settled(smooth(train))]
    if held_out:
        values += [value for _, value in settled(held_out)]
    if values:
        axes.set_ylim(*frame(values))
    last = max((at for at, _ in train + held_out), default=0)
    axes.set_xlim(0, last * 1.01 or 1)


def _columns(values: Points) -> tuple[list[float], list[float]]:
    return [at for at, _ in values], [value for _, value in values]
