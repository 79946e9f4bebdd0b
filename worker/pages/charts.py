"""Small charts as SVG, to stand in a page whose style sheet gives them their colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from worker.pages.wording import duration

_WIDTH, _HEIGHT = 320.0, 108.0
_TOP, _BOTTOM = 16.0, 92.0  # of the area that is drawn in; text stands above and below
_LEAST_SHARE = 1e-4
_LEAST_HEIGHT = 1.5  # of what is there at all
_FULL_BAR_NATS = 15.0


class Line(NamedTuple):
    """A series of a chart: its name, which is also its class in the style sheet, and its values, NaN for none."""

    name: str
    values: Sequence[float]


def time_chart(
    title: str,
    ago: Sequence[float],
    span_s: float,
    lines: Sequence[Line],
    unit: Callable[[float], str],
    tops: Sequence[float] = (),
) -> Markup:
    """Series over time up to now, from 0 to a round number at or above their highest value.

    Args:
        title: for those who hear it read.
        ago: how many seconds ago each value was.
        span_s: seconds from the left edge to the right one.
        lines: of the series; the area below the first one is filled.
        unit: writes a value.
        tops: round numbers, increasing; beyond them those are 1, 2 and 5 times powers of ten.
    """
    highest = max((value for line in lines for value in line.values if not math.isnan(value)), default=0.0)
    top = _round_up(highest, tops)
    scale = (_BOTTOM - _TOP) / top
    places = [_WIDTH * (1 - each / span_s) for each in ago] if span_s else []
    drawn = Markup("")
    for number, line in enumerate(lines):
        for run in _runs(places, [_BOTTOM - scale * value for value in line.values]):
            drawn += _drawn(run, line.name, filled=number == 0)
    labels = _text(0, 11, "start", unit(top)) + _text(0, 105, "start", f"{duration(span_s)} ago")
    return _svg(title, _grid((_TOP, (_TOP + _BOTTOM) / 2, _BOTTOM)) + drawn + labels + _text(_WIDTH, 105, "end", "now"))


def spread_chart(title: str, now: Sequence[float], trained: Sequence[float] | None) -> Markup:
    """How scores are spread over [0, 1], as bars; those of a training as an outline. Shares are on a logarithmic scale.

    Args:
        title: for those who hear it read.
        now: share of each bin, of equal width; empty for none.
        trained: likewise.
    """
    drawn = Markup("")
    for at, share in enumerate(now):
        if share > 0:
            left, width, height = _WIDTH * at / len(now) + 1, _WIDTH / len(now) - 2, _share_height(share)
            drawn += Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
                _(left), _(_BOTTOM - height), _(width), _(height)
            )
    if trained:
        step = _WIDTH / len(trained)
        corners = [
            (x, _BOTTOM - _share_height(share))
            for at, share in enumerate(trained)
            for x in (step * at, step * (at + 1))
        ]
        drawn += Markup('<path class="line trained" d="{}"/>').format(_path(corners))
    decades = [_BOTTOM - (_BOTTOM - _TOP) * part / 4 for part in range(5)]
    labels = Markup("").join(
        _text(_WIDTH * part / 4, 105, "start" if part == 0 else "end" if part == 4 else "middle", f"{part / 4:g}")
        for part in range(5)
    )
    marks = _text(0, 11, "start", "100 %") + _text(_WIDTH, decades[2] - 2, "end", "1 %")
    return _svg(title, _grid(decades) + drawn + labels + marks)


def bar(share: float, name: str = "bar") -> Markup:
    """A bar that fills so much of its place, in [0, 1]."""
    width = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="gauge" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="{}" width="{}" height="8"/></svg>'
    ).format(name, _(width))


def surprise_bar(nats: float) -> Markup:
    """A bar for how surprising an event was, full at 15 nats."""
    return bar(nats / _FULL_BAR_NATS, "bar surprise")


def _share_height(share: float) -> float:
    if share <= 0:
        return 0.0
    return max(_LEAST_HEIGHT, (_BOTTOM - _TOP) * (1 - math.log(max(share, _LEAST_SHARE)) / math.log(_LEAST_SHARE)))


def _round_up(value: float, tops: Sequence[float]) -> float:
    if (top := next((each for each in tops if each >= value * 0.999_999), None)) is not None:
        return top
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= value * 0.999_999)


def _runs(places: Sequence[float], heights: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The points between those that are not known."""
    runs: list[list[tuple[float, float]]] = [[]]
    for place, height in zip(places, heights, strict=True):
        if not math.isnan(height):
            runs[-1].append((place, height))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _drawn(run: Sequence[tuple[float, float]], name: str, *, filled: bool) -> Markup:
    if len(run) == 1:
        ((x, y),) = run
        return Markup('<circle class="dot {}" cx="{}" cy="{}" r="1.5"/>').format(name, _(x), _(y))
    line = Markup('<path class="line {}" d="{}"/>').format(name, _path(run))
    if not filled:
        return line
    below = [(run[0][0], _BOTTOM), *run, (run[-1][0], _BOTTOM)]
    return Markup('<path class="area {}" d="{}"/>').format(name, _path(below)) + line


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_(x)} {_(y)}" for x, y in points)


def _grid(heights: Sequence[float]) -> Markup:
    return Markup("").join(
        Markup('<path class="grid" d="M0 {}H{}"/>').format(_(height), _(_WIDTH)) for height in heights
    )


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_(x), _(y), anchor, text)


def _svg(title: str, drawn: Markup) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>').format(
        _(_WIDTH), _(_HEIGHT), title, drawn
    )


def _(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")
