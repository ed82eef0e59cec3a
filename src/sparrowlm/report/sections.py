"""The upper half of the page: what came of the run, its curves, what it wrote."""

from __future__ import annotations

from collections.abc import Callable

from sparrowlm.config.units import show_bytes, show_count, show_duration
from sparrowlm.report.chart import Chart, Series
from sparrowlm.report.curves import smooth
from sparrowlm.report.read import Points, Row, Run, number, points
from sparrowlm.report.verdict import comparison, headline, yardsticks
from sparrowlm.report.words import escape, together

SAMPLE_STEPS = 6  # moments shown; the rest stay in samples.jsonl
SAMPLE_LENGTH = 1500  # characters of one sample


def header(run: Run) -> str:
    """Name, verdict and bars."""
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in run.faults)
    return (
        f"<header><p class=eyebrow>Sparrow run report</p><h1>{escape(run.name)}</h1>"
        f'<p class="verdict">{_strong_figure(run)}</p>'
        f'<p class="against">{together(escape(comparison(run)))}</p>{_bars(run)}'
        + (f"<ul class=faults>{faults}</ul>" if faults else "")
        + "</header>"
    )


def _strong_figure(run: Run) -> str:
    """The headline with its one figure emphasized."""
    text = together(escape(headline(run)))
    for key, unit in (
        ("val_bits_per_byte", "bits per byte"),
        ("val_loss", "nats per token"),
        ("train_loss", "nats per token"),
    ):
        value = run.figure(key)
        figure = together(f"{value:.3f} {unit}") if value is not None else ""
        if figure and figure in text:
            return text.replace(figure, f"<strong>{figure}</strong>", 1)
    return text


def _bars(run: Run) -> str:
    """The model and the compressors as bars; nothing without both."""
    bits, found = run.figure("val_bits_per_byte"), yardsticks(run)
    if bits is None or not found:
        return ""
    rows = [("this model", bits, "model")] + [(entry.name, entry.value, "") for entry in found]
    longest = max(value for _, value, _ in rows)
    drawn = "".join(
        f'<div class="bar {kind}"><span>{escape(name)}</span>'
        f'<i><b style="width:{value / longest:.2%}"></b></i><span>{value:.3f}</span></div>'
        for name, value, kind in sorted(rows, key=lambda row: -row[1])
    )
    primed = "; <em>xz primed</em> has read the training text first, as the model has"
    if all(entry.name != "xz primed" for entry in found):
        primed = ""
    return (
        f"<div class=bars>{drawn}<p class=note>Bits per byte of the held-out text: how many bits a "
        "byte of it costs, where plain storage takes 8. Shorter is better. The compressors get the "
        f"same bytes{primed}.</p></div>"
    )


def figures(run: Run) -> str:
    """The numbers of the summary as tiles."""
    tiles: list[tuple[str, str, Callable[[float], str]]] = [
        ("held-out loss", "val_loss", lambda value: f"{value:.4f}"),
        ("training loss", "train_loss", lambda value: f"{value:.4f}"),
        ("parameters", "parameters", show_count),
        ("tokens seen", "tokens", show_count),
        ("steps", "steps", lambda value: f"{value:,.0f}"),
        ("time", "wall_seconds", show_duration),
        ("tokens per second", "tokens_per_second", show_count),
        ("utilization", "mfu", lambda value: f"{value:.0%}"),
        ("peak memory", "peak_memory_bytes", show_bytes),
        ("steps not applied", "skipped", lambda value: f"{value:,.0f}"),
    ]
    shown = ""
    for name, key, spoken in tiles:
        value = run.figure(key)
        if value is not None and (key != "skipped" or value > 0):
            shown += f"<div><dd>{escape(spoken(value))}</dd><dt>{escape(name)}</dt></div>"
    return f"<dl class=figures>{shown}</dl>" if shown else ""


def curves(run: Run) -> str:
    """Every chart twice, over steps and over time, and a switch that needs no script."""
    if not run.train and not run.evals:
        return "<section><h2>Curves</h2><p>Nothing was logged.</p></section>"
    seconds = max((at for at, _ in points(run.train + run.evals, "seconds", "seconds")), default=0)
    unit, scale = ("hours", 3600.0) if seconds >= 3 * 3600 else ("minutes", 60.0)
    if 0 < seconds < 120:
        unit, scale = "seconds", 1.0
    by_step = "".join(chart.draw() for chart in charts(run, "step", "step", 1.0))
    by_time = "".join(chart.draw() for chart in charts(run, "seconds", unit, scale))
    return (
        "<section class=curves><h2>Curves</h2>"
        '<input type=radio name=axis id=by-step checked aria-label="over steps">'
        f'<input type=radio name=axis id=by-time aria-label="over {unit}">'
        "<p class=switch aria-hidden=true>Over <label for=by-step>steps</label>"
        f"<label for=by-time>{unit}</label></p>"
        f'<div class="charts by-step">{by_step}</div>'
        f'<div class="charts by-time">{by_time}</div></section>'
    )


def charts(run: Run, x: str, x_name: str, scale: float) -> list[Chart]:
    """The charts over one axis.

    Args:
        run: the log.
        x: the rows' key: `step` or `seconds`.
        x_name: the axis's name.
        scale: how many of the key's units one of the axis's holds.
    """

    def line(rows: list[Row], key: str) -> Points:
        return [(at / scale, value) for at, value in points(rows, key, x)]

    last = max((at for row in run.train + run.evals if (at := number(row.get(x)))), default=0.0)
    end = last / scale * 1.008 or 1.0  # room for the last dot

    def trend(title: str, unit: str, key: str, *, zero: bool = True) -> Chart:
        raw = line(run.train, key)
        calm = smooth(raw)
        series = [Series("each step", raw, "raw"), Series("smoothed", calm, "ink")]
        return Chart(title, unit, series, x_name, end, from_zero=zero)

    def losses(title: str, unit: str, train: str, held_out: str, rules: bool) -> Chart:
        raw = line(run.train, train)
        series = [
            Series("training, each step", raw, "raw"),
            Series("training, smoothed", smooth(raw), "ink"),
            Series("held out", line(run.evals, held_out), "accent", dots=len(run.evals) <= 60),
        ]
        named = [(entry.name, entry.value) for entry in yardsticks(run)] if rules else []
        return Chart(title, unit, series, x_name, end, named, wide=True)

    return [
        losses("Loss", "nats per token", "loss", "val_loss", False),
        losses("Bits per byte", "", "bits_per_byte", "val_bits_per_byte", True),
        Chart(
            "Learning rate",
            "",
            [Series("rate", line(run.train, "lr"))],
            x_name,
            end,
            from_zero=True,
        ),
        trend("Gradient norm", "before clipping", "grad_norm"),
        trend("Speed", "tokens per second", "tokens_per_second"),
        trend("Utilization", "share of the matrix-product ceiling", "mfu"),
    ]


def samples(run: Run) -> str:
    """What the model wrote, from the first moments to the last."""
    if not run.samples:
        return ""
    shown, total = chosen(run.samples)
    blocks = "".join(_moment(run, step, rows) for step, rows in shown)
    more = ""
    if total > len(shown):
        more = f"<p class=note>{len(shown)} of {total} moments; samples.jsonl has them all.</p>"
    return f"<section><h2>Learning to write</h2><ol class=moments>{blocks}</ol>{more}</section>"


def chosen(rows: list[Row]) -> tuple[list[tuple[int, list[Row]]], int]:
    """(the samples by step, at most SAMPLE_STEPS of them; how many steps there are).

    The first, the last, and between them denser early on, where most is learned.
    """
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        by_step.setdefault(int(number(row.get("step")) or 0), []).append(row)
    steps = sorted(by_step)
    if len(steps) > SAMPLE_STEPS:
        share = [index / (SAMPLE_STEPS - 1) for index in range(SAMPLE_STEPS)]
        places = [round(len(steps) ** part) - 1 for part in share]
        for index in range(1, SAMPLE_STEPS):  # small counts round to the same place
            places[index] = max(places[index], places[index - 1] + 1)
        kept = [steps[min(place, len(steps) - 1)] for place in places]
    else:
        kept = steps
    return [(step, by_step[step]) for step in kept], len(steps)


def _moment(run: Run, step: int, rows: list[Row]) -> str:
    """The samples of one step, with what was measured nearest before them."""
    facts = [f"step {step:,}"]
    if (spent := number(rows[0].get("seconds"))) is not None:
        facts.append(show_duration(spent))
    before = [row for row in run.evals if (number(row.get("step")) or 0) <= step]
    if before:
        bits, loss = (number(before[-1].get(key)) for key in ("val_bits_per_byte", "val_loss"))
        if bits is not None:
            facts.append(f"{bits:.3f} bits per byte")
        elif loss is not None:
            facts.append(f"held-out loss {loss:.3f}")
    texts = "".join(_sample(row) for row in rows)
    return f"<li><p class=when>{' · '.join(facts)}</p>{texts}</li>"


def _sample(row: Row) -> str:
    prompt, text = str(row.get("prompt") or ""), str(row.get("text") or "")
    if len(text) > SAMPLE_LENGTH:
        text = text[:SAMPLE_LENGTH] + " …"
    given = f"<b>{escape(prompt)}</b>" if prompt else ""
    return f"<pre class=sample dir=auto>{given}{escape(text) or '<i>(nothing)</i>'}</pre>"
