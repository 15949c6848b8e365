"""Charts as SVG text, colored by CSS variables of the embedding page."""

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeGuard

LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20  # margins of a chart with axes, pixels
COLOURS = 8  # --c0, ... of the page; further series start over


def colour(index: int) -> str:
    """The color of a series, as CSS."""
    return f"var(--c{index % COLOURS})"


def line_chart(
    title: str,
    series: Mapping[str, Sequence[float | None]],
    *,
    start: int = 1,
    width: int = 340,
    height: int = 170,
    low: float | None = None,
    high: float | None = None,
    axes: bool = True,
    marks: Sequence[int] = (),
) -> str:
    """One SVG element with one line per series over the epochs.

    Args:
      title: label for screen readers.
      series: {name: values}; a None or non-finite value leaves a gap.
      start: epoch of the first value.
      width, height: size of the view box in pixels; a page may scale it.
      low, high: limits of the value axis; taken from the values if None.
      axes: whether to draw axes with numbers.
      marks: epochs at which to draw a vertical line.
    """
    finite = [v for values in series.values() for v in values if _finite(v)]
    count = max((len(values) for values in series.values()), default=0)
    low = min(finite, default=0.0) if low is None else low
    high = max(finite, default=1.0) if high is None else high
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    left, right, top, bottom = (LEFT, RIGHT, TOP, BOTTOM) if axes else (2, 2, 3, 3)

    def x(epoch):
        return left + (width - left - right) * (epoch - start) / max(count - 1, 1)

    def y(value):
        return top + (height - top - bottom) * (1 - (value - low) / (high - low))

    parts = [f"<title>{html.escape(title)}</title>"]
    if axes:
        for value in _ticks(low, high):
            parts.append(
                f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(value):.1f}" '
                f'y2="{y(value):.1f}"/><text class="tick" x="{left - 5}" y="{y(value) + 3.5:.1f}" '
                f'text-anchor="end">{_number(value)}</text>'
            )
        for epoch in sorted({start, start + (count - 1) // 2, start + count - 1}):
            parts.append(
                f'<text class="tick" x="{x(epoch):.1f}" y="{height - 5}" text-anchor="middle">'
                f"{epoch}</text>"
            )
    for epoch in marks:
        parts.append(
            f'<line class="mark" x1="{x(epoch):.1f}" x2="{x(epoch):.1f}" y1="{top}" '
            f'y2="{height - bottom}"/>'
        )
    for index, (name, values) in enumerate(series.items()):
        for first, run in _runs(values):
            points = [(x(start + first + i), y(v)) for i, v in enumerate(run)]
            if len(points) == 1:
                parts.append(
                    f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5" '
                    f'style="fill:{colour(index)}"/>'
                )
            text = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            parts.append(f'<polyline style="stroke:{colour(index)}" points="{text}"/>')
            for i, (a, b) in enumerate(points) if axes else ():
                label = f"{name}, epoch {start + first + i}: {run[i]:.4g}"
                parts.append(
                    f'<circle class="point" cx="{a:.1f}" cy="{b:.1f}" r="5">'
                    f"<title>{html.escape(label)}</title></circle>"
                )
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {width} {height}" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    )


def dot_strip(title: str, values: Sequence[float], low: float, high: float) -> str:
    """One SVG element with a dot per value, a line at the mean, and a band of one deviation.

    Args:
      title: label for screen readers.
      values: at least one.
      low, high: limits of the axis, common to strips that are compared.
    """
    width, height, margin = 240, 26, 8

    def x(value):
        return margin + (width - 2 * margin) * (value - low) / (high - low or 1)

    mean = statistics.fmean(values)
    parts = [f"<title>{html.escape(title)}</title>"]
    parts.append(
        f'<line class="grid" x1="{margin}" x2="{width - margin}" y1="{height / 2}" '
        f'y2="{height / 2}"/>'
    )
    if len(values) > 1:
        deviation = statistics.stdev(values)
        left, right = (min(max(x(mean + s * deviation), 0), width) for s in (-1, 1))
        parts.append(
            f'<rect class="band" x="{left:.1f}" width="{right - left:.1f}" y="5" '
            f'height="{height - 10}"/>'
        )
    parts.append(
        f'<line class="mean" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="3" y2="{height - 3}"/>'
    )
    for value in values:
        parts.append(
            f'<circle cx="{x(value):.1f}" cy="{height / 2}" r="3.5" style="fill:{colour(0)}">'
            f"<title>{value:.4g}</title></circle>"
        )
    return (
        f'<svg class="chart strip" role="img" viewBox="0 0 {width} {height}" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    )


def legend(names: Sequence[str]) -> str:
    """The names of the series with their colors."""
    entries = [
        f'<li><span class="swatch" style="background:{colour(i)}"></span>{html.escape(name)}</li>'
        for i, name in enumerate(names)
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _runs(values):
    """(index of the first, values) of each run without gaps."""
    begin = None
    for i, value in enumerate([*values, None]):
        if _finite(value):
            begin = i if begin is None else begin
        elif begin is not None:
            yield begin, values[begin:i]
            begin = None


def _ticks(low, high, most=5):
    """Round numbers between two values."""
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value):
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"
