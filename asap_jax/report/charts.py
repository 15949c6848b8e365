"""Charts as SVG text, colored by CSS variables of the embedding page."""

import html
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard, cast

LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20  # margins of a chart with axes, pixels
COLOURS = 8  # --c0, ... of the page; further series start over, with the next dashes
DASHES = "", "6 3", "2 2", "8 2 2 2"
Names = Sequence[str] | Mapping[str, int]  # of series; also {name: its number}, if not from 0 on


def colour(index: int) -> str:
    """The color of a series, as CSS."""
    return f"var(--c{index % COLOURS})"


def stroke(index: int) -> str:
    """The color and the dashes of a series' line, as CSS."""
    dashes = DASHES[index // COLOURS % len(DASHES)]
    return f"stroke:{colour(index)}" + f";stroke-dasharray:{dashes}" * bool(dashes)


def numbered(names: Names) -> dict[str, int]:
    """{name: the number of its series}."""
    return dict(names) if isinstance(names, Mapping) else {name: i for i, name in enumerate(names)}


class _Plane(NamedTuple):
    """A rectangle of values, and where it lies in a chart's view box.

    x, y: (lowest, highest) value.
    width, height: size of the view box in pixels; a page may scale it.
    margins: (left, right, top, bottom), pixels.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 340
    height: int = 170
    margins: tuple[int, int, int, int] = (LEFT, RIGHT, TOP, BOTTOM)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        left, right, top, bottom = self.margins
        (x0, x1), (y0, y1) = self.x, self.y
        across = (x - x0) / (x1 - x0 or 1)
        return (
            left + (self.width - left - right) * across,
            top + (self.height - top - bottom) * (1 - (y - y0) / (y1 - y0)),
        )

    def grid(self, numbers: Sequence[float]) -> list[str]:
        """Horizontal lines with their values, and `numbers` along the horizontal axis."""
        left, right, *_ = self.margins
        parts = []
        for value in _ticks(*self.y):
            _, y = self.at(self.x[0], value)
            parts.append(
                f'<line class="grid" x1="{left}" x2="{self.width - right}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/><text class="tick" x="{left - 5}" y="{y + 3.5:.1f}" '
                f'text-anchor="end">{_number(value)}</text>'
            )
        for number in numbers:
            label = _number(number)
            x = min(self.at(number, self.y[0])[0], self.width - LETTER * len(label) / 2)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{self.height - 5}" text-anchor="middle">'
                f"{label}</text>"
            )
        return parts

    def svg(self, title: str, parts: Sequence[str]) -> str:
        """The chart as one SVG element, labeled for screen readers."""
        title = html.escape(title)
        return (
            f'<svg class="chart" role="img" viewBox="0 0 {self.width} {self.height}" '
            f'aria-label="{title}"><title>{title}</title>{"".join(parts)}</svg>'
        )


def _limits(values: Sequence[float], low: float | None = None, high: float | None = None):
    """(low, high), from the values where not given; never equal."""
    low = min(values, default=0.0) if low is None else low
    high = max(values, default=1.0) if high is None else high
    if high <= low:
        return low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return low, high


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
    span: tuple[float, float] | None = None,
    numbers: Mapping[str, int] | None = None,
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
      span: instead of epochs, the values lie evenly between these two.
      numbers: {name: number} of each series, for its color; None counts them from 0 on.
    """
    finite = [v for values in series.values() for v in values if _finite(v)]
    count = max((len(values) for values in series.values()), default=0)
    first, last = span or (start, start + max(count - 1, 0))
    margins = (LEFT, RIGHT, TOP, BOTTOM) if axes else (2, 2, 3, 3)
    plane = _Plane((first, last), _limits(finite, low, high), width, height, margins)

    def position(index):
        return first + (last - first) * index / max(count - 1, 1)

    middle = (first + last) / 2 if span else start + (count - 1) // 2
    parts = plane.grid(sorted({first, middle, last})) if axes else []
    for epoch in marks:
        x, _ = plane.at(epoch, 0)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{margins[2]}" '
            f'y2="{height - margins[3]}"/>'
        )
    what = "at" if span else "epoch"
    numbered_as = numbered(list(series)) if numbers is None else numbers
    for name, values in series.items():
        index = numbered_as[name]
        for begin, run in _runs(values):
            places = [position(begin + i) for i in range(len(run))]
            points = [plane.at(*pair) for pair in zip(places, run, strict=True)]
            if len(points) == 1:
                parts.append(
                    f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5" '
                    f'style="fill:{colour(index)}"/>'
                )
            text = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            parts.append(f'<polyline style="{stroke(index)}" points="{text}"/>')
            for i, (a, b) in enumerate(points) if axes else ():
                label = f"{name}, {what} {_number(places[i])}: {run[i]:.4g}"
                parts.append(
                    f'<circle class="point" cx="{a:.1f}" cy="{b:.1f}" r="5">'
                    f"<title>{html.escape(label)}</title></circle>"
                )
    return plane.svg(title, parts)


class Spot(NamedTuple):
    """A point of a scatter chart.

    name: shown beside it.
    x, y: its place.
    size: its area, in units of the largest one's.
    """

    name: str
    x: float
    y: float
    size: float


def scatter(title: str, spots: Sequence[Spot], across: str, up: str) -> str:
    """One SVG element with a named disc per spot.

    Args:
      title: label for screen readers.
      spots: at least one.
      across, up: what the axes are, with units.
    """
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    (left, right), (low, high) = _limits(xs), _limits(ys)
    room = 0.06 * (right - left), 0.1 * (high - low)
    x = left - room[0], right + 4 * room[0]  # names stand to the right of their discs
    plane = _Plane(x, (low - room[1], high + room[1]), height=260)
    parts, discs = plane.grid(_ticks(left, right)), []
    for spot in spots:
        discs.append((*plane.at(spot.x, spot.y), 3 + 7 * math.sqrt(spot.size)))
    places = _beside(discs, [spot.name for spot in spots])
    for index, (spot, (a, b, radius), place) in enumerate(zip(spots, discs, places, strict=True)):
        label = f"{spot.name}: {spot.x:.4g} {across}, {spot.y:.4g} {up}"
        parts.append(
            f'<circle class="spot" cx="{a:.1f}" cy="{b:.1f}" r="{radius:.1f}" '
            f'style="fill:{colour(index)}"><title>{html.escape(label)}</title></circle>'
            f'<text class="tick" x="{place[0]:.1f}" y="{place[1]:.1f}">'
            f"{html.escape(spot.name)}</text>"
        )
    return plane.svg(title, parts)


LETTER, LINE = 5.4, 10.0  # pixels of a letter's width and of a line's height, in a chart


def _beside(discs: Sequence[tuple[float, float, float]], names: Sequence[str]):
    """[(x, y)] where each disc's name begins: beside it, free of the names before it if possible.

    Args:
      discs: (x, y, radius) of each.
      names: of each.
    """
    taken, places = [], []
    for (x, y, radius), name in zip(discs, names, strict=True):
        width = LETTER * len(name)
        right, left = x + radius + 2, x - radius - 2 - width
        middle = x - width / 2
        tried = [(right, y), (left, y), (middle, y - radius - 6), (middle, y + radius + 6)]
        tried += [(side, y + n * LINE) for n in (1, -1, 2, -2, 3, -3) for side in (right, left)]

        def covered(place, width=width):
            return sum(
                max(0.0, min(place[0] + width, a + wide) - max(place[0], a))
                * max(0.0, LINE - abs(place[1] - b))
                for a, b, wide in taken
            )

        best = min(tried, key=covered)  # of equal ones the first
        taken.append((*best, width))
        places.append((best[0], best[1] + 3.5))
    return places


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


def standalone(svg: str, names: Names = ()) -> str:
    """A chart as a picture of its own: with the light colors of the page, and a legend below.

    Args:
      svg: one element, as the functions here return it.
      names: of its series; without them there is no legend.
    """
    width, height = (int(n) for n in re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    step, columns = 14, 3
    entries = []
    for i, (name, number) in enumerate(numbered(names).items()):
        x, y = 10 + (i % columns) * (width - 20) / columns, height + 10 + i // columns * step
        entries.append(
            f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="{y}" y2="{y}" stroke-width="3" '
            f'style="{stroke(number)}"/>'
            f'<text class="tick" x="{x + 22:.0f}" y="{y + 4}">{html.escape(name)}</text>'
        )
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    colours = "".join(re.findall(r"--c\d: #[0-9a-f]{6};", style)[:COLOURS])
    total = height + -(-len(names) // columns) * step + (8 if names else 0)
    rules = (
        "polyline{fill:none;stroke-width:1.6}.grid{stroke:#dfe3ea}.point{fill:transparent}"
        ".tick{font:10px system-ui,sans-serif;fill:#5b6475}.spot{fill-opacity:.75}"
    )
    inside = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" '
        f'width="{2 * width}" height="{2 * total}"><style>:root{{{colours}}}{rules}</style>'
        f'<rect width="{width}" height="{total}" style="fill:#ffffff"/>'
        f"{inside}{''.join(entries)}</svg>\n"
    )


def legend(names: Names) -> str:
    """The names of the series with their colors and dashes."""
    entries = [
        '<li><svg class="key" viewBox="0 0 18 4" width="18" height="4"><line x2="18" y1="2" y2="2" '
        f'stroke-width="3" style="{stroke(number)}"/></svg>{html.escape(name)}</li>'
        for name, number in numbered(names).items()
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _runs(values: Sequence[float | None]) -> Iterator[tuple[int, Sequence[float]]]:
    """(index of the first, values) of each run without gaps."""
    begin = None
    for i, value in enumerate([*values, None]):
        if _finite(value):
            begin = i if begin is None else begin
        elif begin is not None:
            yield begin, cast(Sequence[float], values[begin:i])
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
