"""Numbers, escaped text and SVG figures for the report: pure functions from plain data to strings.

Every figure is one inline `<svg>`: classes take their colours from the page's style sheet (so light, dark and print
need no second drawing), every mark carries a `<title>` a browser shows on hover, axes carry units, and nothing in it
loads anything. Coordinates are rounded to a hundredth, so equal data give equal bytes.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that act instead of being seen: controls, marks of reading direction, lone surrogates, tags."""

WIDTH = 720
TEXT = 12
"""Width of a figure and size of its letters, in the SVG's own units (pixels at full width)."""


def _shown(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match[0]):04X}⟩"


def escape(text: str) -> str:
    """Text from anywhere as HTML text or attribute value: markup inert, characters that act made visible.

    >>> escape('<b>\\u202e')
    '&lt;b&gt;⟨U+202E⟩'
    """
    return html.escape(UNSEEN.sub(_shown, text.replace("\r\n", "\n")), quote=True)


def count(value: float) -> str:
    """A whole number with a thin space between thousands: 1 234 567 reads alike in every language."""
    return f"{round(value):,}".replace(",", "\u202f")


def decimal(value: float, places: int = 2) -> str:
    """A number with fixed decimals and thin spaces between thousands; an en dash when it is not finite."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.{places}f}".replace(",", "\u202f").replace("-", "\u2212")


def percent(part: float, whole: float) -> str:
    """A share in percent, never rounded to 0 or 100 when it is neither; an en dash of nothing."""
    if whole <= 0:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "<\u202f0.1\u202f%"
    if 99.95 < share < 100:
        return ">\u202f99.9\u202f%"
    return f"{share:.1f}\u202f%"


def short(value: float) -> str:
    """A number for an axis: 1500 as 1.5k, 2000000 as 2M; small ones with the digits they need."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}".replace("-", "\u2212")
    return f"{value:.4g}".replace("-", "\u2212")


def number(value: float) -> str:
    """A coordinate: at most two decimals, no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) >= 0.005 else "0"


def element(name: str, *children: str, **attributes: str | float) -> str:
    """An SVG or HTML element; children are markup already, attribute values are escaped. `class_` gives `class`."""
    fields = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
    )
    body = "".join(children)
    return f"<{name}{fields}>{body}</{name}>" if body else f"<{name}{fields}/>"


def label(x: float, y: float, text: str, class_: str = "label") -> str:
    """A line of text in a figure."""
    return element("text", escape(text), x=x, y=y, class_=class_)


def hover(text: str) -> str:
    """The tooltip of a mark."""
    return element("title", escape(text))


def picture(width: float, height: float, title: str, *marks: str, class_: str = "chart") -> str:
    """The whole figure. The title is what a screen reader says."""
    return element(
        "svg", *marks, viewBox=f"0 0 {number(width)} {number(height)}", role="img", aria_label=title, class_=class_
    )


@dataclass(frozen=True)
class Axis:
    """Values from low to high drawn from start to stop, in proportion or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = (math.log(value) if self.log else value) - low
        return self.start + (self.stop - self.start) * (place / (high - low) if high > low else 0.5)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside [low, high].

    >>> ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * s for s in (1, 2, 5, 10) if power * s >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high]; with 2 and 5 times them where the span is short."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0,) if math.log10(high / low) > 2.5 else (1.0, 2.0, 5.0)
    return [v for e in exponents for s in steps if low * (1 - 1e-9) <= (v := s * 10.0**e) <= high * (1 + 1e-9)]


def _rounded_up(value: float) -> float:
    """The end of an axis: the smallest round number that is not below the value."""
    return next((t for t in ticks(0, value * 1.3, 6) if t >= value), value) if value > 0 else 1.0


def _frame(x: Axis, y: Axis, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
    """Grid lines, tick numbers and axis names around a plot whose floor is y.start."""
    rows = [
        element("line", x1=x.start, x2=x.stop, y1=y.at(t), y2=y.at(t), class_="grid")
        + label(x.start - 8, y.at(t) + 4, short(t), "tick end")
        for t in y_ticks
    ]
    columns = [
        element("line", x1=x.at(t), x2=x.at(t), y1=y.start, y2=y.start + 4, class_="axis")
        + label(x.at(t), y.start + 18, short(t), "tick middle")
        for t in x_ticks
    ]
    return "".join(
        [
            *rows,
            element("line", x1=x.start, x2=x.stop, y1=y.start, y2=y.start, class_="axis"),
            *columns,
            label((x.start + x.stop) / 2, y.start + 38, x_label, "name middle"),
            label(0, y.stop - 14, y_label, "name"),
        ]
    )


def _legend(names: Sequence[tuple[str, str]], right: float, y: float) -> str:
    """Swatches and names in a row that ends at `right`; (name, class of its mark)."""
    marks: list[str] = []
    x = right
    for name, class_ in reversed(names):
        x -= 7.0 * len(name)
        marks.append(label(x, y, name, "tick"))
        marks.append(element("rect", x=x - 16, y=y - 9, width=11, height=10, class_=class_))
        x -= 30
    return "".join(reversed(marks))


def histogram(
    edges: Sequence[float],
    series: Sequence[tuple[str, Sequence[int]]],
    title: str,
    x_label: str,
    y_label: str,
    height: int = 260,
) -> str:
    """Counts between edges on a logarithmic axis; later series are drawn over earlier ones (all, then kept).

    `edges` has one value more than each series; the first edge must be above zero.
    """
    x = Axis(edges[0], edges[-1], 56, WIDTH - 8, log=True)
    top = max((v for _, values in series for v in values), default=0)
    y = Axis(0, _rounded_up(top), height - 46, 34)
    marks = []
    for index, (name, values) in enumerate(series):
        class_ = "mark-kept" if index == len(series) - 1 else "mark-all"
        for low, high, value in zip(edges, edges[1:], values, strict=False):
            if value:
                left, right = x.at(low) + 0.75, x.at(high) - 0.75
                tip = f"{count(low)} to {count(high)}: {count(value)} ({name})"
                marks.append(
                    element(
                        "rect",
                        hover(tip),
                        x=left,
                        y=y.at(value),
                        width=right - left,
                        height=y.start - y.at(value),
                        class_=class_,
                    )
                )
    names = [(n, "mark-kept" if i == len(series) - 1 else "mark-all") for i, (n, _) in enumerate(series)]
    legend = _legend(names, WIDTH - 8, 14) if len(series) > 1 else ""
    frame = _frame(x, y, log_ticks(edges[0], edges[-1]), ticks(0, y.high, 4), x_label, y_label)
    return picture(WIDTH, height, title, frame, *marks, legend)


def bars(
    rows: Sequence[tuple[str, Sequence[int]]], names: Sequence[str], title: str, unit: str, width: int = WIDTH
) -> str:
    """Horizontal bars, one row per name; with two values the second (a part of the first) is drawn over it."""
    left, right, line = 150, width - 150, 24
    top = max((values[0] for _, values in rows), default=0)
    x = Axis(0, max(top, 1), left, right)
    marks = []
    for index, (name, values) in enumerate(rows):
        y = 22 + index * line
        marks.append(label(left - 8, y + 13, name, "tick end"))
        for order, value in enumerate(values):
            class_ = "mark-kept" if order or len(names) == 1 else "mark-all"
            inset = 3 if order else 0
            tip = f"{name}: {count(value)} {unit} ({names[order]})"
            marks.append(
                element(
                    "rect",
                    hover(tip),
                    x=left,
                    y=y + inset,
                    width=max(x.at(value) - left, 0.5 if value else 0),
                    height=line - 6 - 2 * inset,
                    class_=class_,
                )
            )
        shown = " / ".join(count(v) for v in reversed(values))
        marks.append(label(x.at(values[0]) + 6, y + 13, shown, "tick"))
    legend = _legend([(n, "mark-kept" if i else "mark-all") for i, n in enumerate(names)], width - 8, 12)
    return picture(width, 26 + len(rows) * line, title, *marks, legend if len(names) > 1 else "")


def lines(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    height: int = 300,
) -> str:
    """Line chart of one or more series of (x, y); short series and the second one on carry dots with tooltips."""
    points = [p for _, values in series for p in values if math.isfinite(p[1]) and (p[0] > 0 or not log_x)]
    if not points:
        return picture(WIDTH, 40, title, label(0, 24, "no finite numbers to draw", "name"))
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    room = (max(ys) - min(ys)) * 0.06 or abs(max(ys)) * 0.05 or 1.0
    x = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, 56, WIDTH - 16, log=log_x)
    y = Axis(min(ys) - room, max(ys) + room, height - 46, 34)
    marks = []
    first = 1 if len(series) == 1 else 0  # a line alone takes the accent
    for index, (name, values) in enumerate(series, first):
        good = [p for p in values if math.isfinite(p[1]) and (p[0] > 0 or not log_x)]
        path = " ".join(f"{number(x.at(a))},{number(y.at(b))}" for a, b in good)
        marks.append(element("polyline", hover(name), points=path, class_=f"line line-{index}"))
        if len(good) <= 60:
            marks += [
                element(
                    "circle",
                    hover(f"{name} at {short(a)}: {decimal(b, 3)}"),
                    cx=x.at(a),
                    cy=y.at(b),
                    r=3,
                    class_=f"dot-{index}",
                )
                for a, b in good
            ]
    x_ticks = log_ticks(x.low, x.high) if log_x else []
    if len(x_ticks) < 3:
        x_ticks = ticks(x.low, x.high, 6)
    frame = _frame(x, y, x_ticks, ticks(y.low, y.high, 5), x_label, y_label)
    legend = _legend([(n, f"dot-{i}") for i, (n, _) in enumerate(series)], WIDTH - 8, 14) if len(series) > 1 else ""
    return picture(WIDTH, height, title, frame, *marks, legend)


def intervals(rows: Sequence[tuple[str, Sequence[tuple[str, float, float, float]]]], title: str, x_label: str) -> str:
    """Dots with their intervals, a row per name, in percent; each mark is (series, value, low, high)."""
    left, line = 150, 30
    top = _rounded_up(max((h for _, marks in rows for _, _, _, h in marks), default=1.0))
    x = Axis(0, top, left, WIDTH - 20)
    floor = 26 + len(rows) * line
    order = {name: i for i, name in enumerate(dict.fromkeys(s for _, marks in rows for s, *_ in marks))}
    drawn = [
        element("line", x1=x.at(t), x2=x.at(t), y1=22, y2=floor, class_="grid")
        + label(x.at(t), floor + 16, short(t), "tick middle")
        for t in ticks(0, top, 6)
    ]
    for index, (name, marks) in enumerate(rows):
        middle = 26 + line * (index + 0.5)
        drawn.append(label(left - 10, middle + 4, name, "tick end"))
        for series, value, low, high in marks:
            y = middle + (6 * order[series] - 3 * (len(order) - 1))
            tip = f"{name}, {series}: {decimal(value)} % (95 % interval {decimal(low)} to {decimal(high)})"
            whisker = element("line", x1=x.at(low), x2=x.at(high), y1=y, y2=y, class_=f"line line-{order[series]}")
            dot = element("circle", cx=x.at(value), cy=y, r=3.5, class_=f"dot-{order[series]}")
            drawn.append(element("g", hover(tip), whisker, dot))
    legend = _legend([(n, f"dot-{i}") for n, i in order.items()], WIDTH - 8, 12)
    axis = element("line", x1=left, x2=WIDTH - 20, y1=floor, y2=floor, class_="axis")
    name = label((left + WIDTH - 20) / 2, floor + 36, x_label, "name middle")
    return picture(WIDTH, floor + 42, title, *drawn, axis, name, legend)


def share_bar(part: float, whole: float, of: float = 0) -> str:
    """A small bar for a table cell: `whole` out of `of` in the quiet colour, `part` of it in the accent."""
    of = of or whole or 1
    quiet = element("rect", width=100 * whole / of, height=8, class_="mark-all") if whole else ""
    kept = element("rect", width=100 * part / of, height=8, class_="mark-kept") if part else ""
    return picture(100, 8, f"{count(part)} of {count(whole)}", quiet, kept, class_="sharebar")


@dataclass(frozen=True)
class Step:
    """One ledger of the funnel: what entered, what was kept, and every drop as (reason, count), largest first."""

    name: str
    unit: str
    entered: int
    kept: int
    drops: tuple[tuple[str, int], ...] = ()
    kept_as: str = "kept"
    """Word for what goes on."""


LEFT, RIGHT, LIST, END = 168.0, 560.0, 590.0, 960.0
"""The funnel's columns: names end at LEFT, the flow runs from LEFT to RIGHT, reasons stand from LIST to END."""
BAR, LINE, SHADES, LISTED = 20.0, 18.0, 5, 9


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _ribbon(top: tuple[float, float], bottom: tuple[float, float], y0: float, y1: float, class_: str) -> str:
    """A band from [left, right] at y0 to [left, right] at y1 with vertical ends."""
    (a, b), (c, d), m = top, bottom, (y0 + y1) / 2
    path = (
        f"M{number(a)} {number(y0)}C{number(a)} {number(m)} {number(c)} {number(m)} {number(c)} {number(y1)}"
        f"L{number(d)} {number(y1)}C{number(d)} {number(m)} {number(b)} {number(m)} {number(b)} {number(y0)}Z"
    )
    return element("path", d=path, class_=class_)


def _folded(drops: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Drops that fit the figure's list; the rest as one entry."""
    if len(drops) <= LISTED:
        return list(drops)
    rest = drops[LISTED - 1 :]
    return [*drops[: LISTED - 1], (f"{len(rest)} further reasons", sum(n for _, n in rest))]


def _step(step: Step, y: float, width: float, bottom: float) -> str:
    """One bar: the kept part at the left, drops fading away below its right, reasons listed beside it."""
    scale = width / step.entered if step.entered else 0.0
    marks = [
        label(0, y + 15, step.name, "step"),
        label(0, y + 32, f"{count(step.entered)} {step.unit}", "tick"),
    ]
    kept = step.kept * scale
    if step.entered:
        tip = f"{step.name}: {count(step.kept)} of {count(step.entered)} {step.unit} {step.kept_as}"
        marks.append(element("rect", hover(tip), x=LEFT, y=y, width=max(kept, 1), height=BAR, class_="flow"))
    x = LEFT + kept
    for index, (reason, n) in enumerate(_folded(step.drops)):
        shade = f"drop-{index % SHADES}"
        share = percent(n, step.entered)
        wide = max(n * scale, 0.6)
        tip = hover(f"{reason}: {count(n)} {step.unit} ({share})")
        bar = element("rect", x=x, y=y, width=wide, height=BAR, class_=shade)
        fall = element("rect", x=x, y=y + BAR, width=wide, height=min(24.0, bottom - y - BAR), class_="fall")
        marks.append(element("g", tip, bar, fall))
        row = y + 14 + index * LINE
        marks.append(element("rect", tip, x=LIST, y=row - 9, width=10, height=10, class_=shade))
        marks.append(label(LIST + 18, row, _cut(reason.replace("_", " "), 32), "tick"))
        marks.append(label(END - 62, row, count(n), "tick end"))
        marks.append(label(END, row, share, "faint end"))
        x += n * scale
    if not step.drops:
        marks.append(label(LIST, y + 14, "nothing dropped", "faint"))
    return "".join(marks)


def funnel(steps: Sequence[Step], title: str) -> str:
    """The funnel, top to bottom: a bar per ledger, its kept part flowing into the next.

    A bar's width continues the one above while the count does (what one ledger kept is what the next was given) and
    is drawn at full width again where another source comes in or less than a tenth is left; the flow between is then
    pale and the change is said. Shares within a bar are exact.
    """
    fade = element(
        "linearGradient",
        element("stop", offset="0", class_="fade-from"),
        element("stop", offset="1", class_="fade-to"),
        id="fade",
        x1="0",
        x2="0",
        y1="0",
        y2="1",
    )
    marks: list[str] = []
    y, width, full = 8.0, RIGHT - LEFT, RIGHT - LEFT
    for index, step in enumerate(steps):
        height = max(84.0, 14 + LINE * min(len(step.drops), LISTED) + 16)
        below = y + height
        kept = max(width * step.kept / step.entered, 1.0) if step.entered else 1.0
        marks.append(_step(step, y, width, below))
        said = f"{count(step.kept)} {step.unit} {step.kept_as}"
        if index + 1 == len(steps):
            marks.append(label(LEFT + 8, y + BAR + 20, said, "label"))
            y += 50.0 if len(step.drops) < 3 else height
            break
        following = steps[index + 1]
        goes_on = following.entered == step.kept
        rescaled = not goes_on or kept < full / 10
        width = full if rescaled else kept
        ribbon = _ribbon(
            (LEFT, LEFT + kept), (LEFT, LEFT + width), y + BAR, below, "flowing rescaled" if rescaled else "flowing"
        )
        marks.insert(0, ribbon)
        marks.append(label(LEFT + 8, y + BAR + 20, f"{said} ({percent(step.kept, step.entered)})", "label"))
        if not goes_on:
            marks.append(label(LEFT + 8, below - 8, f"{following.unit}: another count, drawn anew", "faint"))
        elif rescaled:
            marks.append(label(LEFT + 8, below - 8, f"drawn {full / kept:.0f} times as wide from here", "faint"))
        y = below
    return picture(END + 4, y + 4, title, element("defs", fade), *marks, class_="chart funnel")
