"""A line chart as HTML around one small SVG.

The lines are drawn in a square of 1000 by 1000 that stretches to its place, with strokes that do
not; the words around them are HTML. So a chart fills a phone or a sheet of paper, and its letters
stay the size of the page's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sparrowlm.report.curves import frame, label, quantile, settled, spread, thin, ticks
from sparrowlm.report.read import Points
from sparrowlm.report.words import escape

Style = Literal["raw", "ink", "accent"]
SIDE = 1000


@dataclass(frozen=True)
class Series:
    """One line. `raw` is faint, `ink` is plain, `accent` is what to look at."""

    name: str
    points: Points
    style: Style = "ink"
    dots: bool = False  # few enough to be marked one by one


@dataclass(frozen=True)
class Chart:
    """What is drawn; x is in the unit that `x_name` says."""

    title: str
    unit: str
    series: list[Series]
    x_name: str = "step"
    x_end: float = 1.0  # where the axis ends; it starts at 0
    rules: list[tuple[str, float]] = field(default_factory=list)  # named horizontal lines
    from_zero: bool = False
    wide: bool = False

    def draw(self) -> str:
        """The chart as HTML, or nothing where it has no point."""
        if not any(entry.points for entry in self.series):
            return ""
        low, high = self._frame()
        kinds = "chart wide" if self.wide else "chart"
        return (
            f'<figure class="{kinds}">{self._caption()}<div class="plot">'
            f"{self._y_axis(low, high)}{self._drawing(low, high)}{self._rule_names(low, high)}"
            f"{self._x_axis()}</div>{self._above(high)}</figure>"
        )

    def _frame(self) -> tuple[float, float]:
        """The frame holds what follows the first fall, but for rare peaks, and every rule."""
        values = [value for _, value in self.rules]
        for entry in self.series:
            calm = settled(entry.points)
            if calm and entry.style == "raw":
                values += [quantile(calm, 0.003), quantile(calm, 0.997)]
            else:
                values += [value for _, value in calm]
        return frame(values, zero=self.from_zero)

    def _caption(self) -> str:
        keys = ""
        if self.wide:  # the small charts beside keep the same colors
            keys = "".join(
                f'<span class="key {entry.style}">{escape(entry.name)}</span>'
                for entry in self.series
                if entry.points
            )
        return (
            f"<figcaption><b>{escape(self.title)}</b> <small>{escape(self.unit)}</small>"
            f"<span class=keys>{keys}</span></figcaption>"
        )

    def _drawing(self, low: float, high: float) -> str:
        shapes = [
            f'<path class="grid" d="M0 {self._y(tick, low, high)}H{SIDE}"/>'
            for tick in ticks(low, high)
        ]
        shapes += [
            f'<path class="rule" d="M0 {self._y(value, low, high)}H{SIDE}"/>'
            for _, value in self.rules
        ]
        for entry in self.series:
            shapes.append(self._line(entry, low, high))
        return (
            f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(self._spoken())}">{"".join(shapes)}</svg>'
        )

    def _line(self, entry: Series, low: float, high: float) -> str:
        places = [
            (f"{at / self.x_end * SIDE:.1f}".removesuffix(".0"), self._y(value, low, high))
            for at, value in thin(entry.points)
        ]
        path = "L".join(f"{x} {y}" for x, y in places)
        drawn = f'<path class="{entry.style}" d="M{path}"/>' if len(places) > 1 else ""
        if entry.dots or len(places) == 1:
            # A line of no length with round ends is a dot that no stretching makes an ellipse.
            for (x, y), (at, value) in zip(places, thin(entry.points), strict=True):
                told = f"{self.x_name} {at:,.6g}: {value:.4g} {self.unit}"
                drawn += (
                    f'<path class="dot {entry.style}" d="M{x} {y}h0">'
                    f"<title>{escape(told)}</title></path>"
                )
        return drawn

    def _y(self, value: float, low: float, high: float) -> str:
        """The height of a value, kept within reach of the frame (the SVG cuts what is outside)."""
        share = min(max((high - value) / (high - low), -1.0), 2.0)
        return f"{share * SIDE:.1f}".removesuffix(".0")

    def _y_axis(self, low: float, high: float) -> str:
        shown = ticks(low, high)
        marks = "".join(
            f'<span style="top:{(high - tick) / (high - low):.2%}">{label(tick, shown)}</span>'
            for tick in shown
        )
        return f"<div class=y aria-hidden=true>{marks}</div>"

    def _x_axis(self) -> str:
        shown = ticks(0.0, self.x_end, 6)
        marks = "".join(
            f'<span style="left:{tick / self.x_end:.2%}">{label(tick, shown)}</span>'
            for tick in shown
        )
        return f"<div class=x aria-hidden=true>{marks}<i>{escape(self.x_name)}</i></div>"

    def _rule_names(self, low: float, high: float) -> str:
        if not self.rules:
            return ""
        places = [(high - value) / (high - low) for _, value in self.rules]
        marks = "".join(
            f'<span style="top:{place:.2%}">{escape(name)} <b>{value:.3f}</b></span>'
            for (name, value), place in zip(
                self.rules, spread(places, 0.11, 0.05, 0.95), strict=True
            )
        )
        return f"<div class=rules>{marks}</div>"

    def _above(self, high: float) -> str:
        """Say what the frame leaves out, since nobody would guess it."""
        top = max(value for entry in self.series for _, value in entry.points)
        return f"<p class=note>Above the frame: values up to {top:.3g}.</p>" if top > high else ""

    def _spoken(self) -> str:
        """What a screen reader says of the picture."""
        ends = [
            f"{entry.name} from {entry.points[0][1]:.4g} to {entry.points[-1][1]:.4g}"
            for entry in self.series
            if entry.points and entry.style != "raw"
        ]
        return f"{self.title} in {self.unit} by {self.x_name}: {'; '.join(ends)}"
