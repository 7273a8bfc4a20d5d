"""Geometry of the report's line charts: from numbers to places on an SVG canvas. The template draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400.0, 236.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 38.0, 10.0, 34.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. `low` and `high`, if given, are the ends of its interval at each point."""

    name: str
    style: str
    """Name of the style sheet's class."""
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    style: str
    y: float


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Drawn:
    """A series in place: SVG `points` of its line and band, and its markers."""

    series: Series
    line: str
    band: str
    markers: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class DrawnLevel:
    level: Level
    at: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Drawn, ...]
    levels: tuple[DrawnLevel, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def line_chart(title: str, series: Sequence[Series], *, levels: Sequence[Level] = (), markers: bool = True) -> Chart:
    """At least one series over the steps of the attack. Values that are not finite are left out, and break no line."""
    values = [v for s in series for v in (*s.y, *s.low, *s.high)] + [level.y for level in levels]
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    y_ticks = ticks(min(finite), max(finite))
    x_ticks = ticks(min(min(s.x) for s in series), max(max(s.x) for s in series), about=5)
    y_low, y_high = min(y_ticks[0], *finite), max(y_ticks[-1], *finite)
    x_low, x_high = min(min(s.x) for s in series), max(max(s.x) for s in series)

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT), 2)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / ((y_high - y_low) or 1) * (HEIGHT - BOTTOM - TOP), 2)

    def place(one: Series) -> Drawn:
        spots = [(across(x), down(y)) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
        band: list[tuple[float, float]] = []
        if one.low and all(map(math.isfinite, (*one.low, *one.high))):
            band = [(across(x), down(y)) for x, y in zip(one.x, one.high, strict=True)]
            band += [(across(x), down(y)) for x, y in reversed(list(zip(one.x, one.low, strict=True)))]
        return Drawn(one, _points(spots), _points(band), tuple(spots) if markers else ())

    return Chart(
        title=title,
        x_ticks=tuple(Tick(across(x), number(x)) for x in x_ticks if x_low <= x <= x_high),
        y_ticks=tuple(Tick(down(y), number(y)) for y in y_ticks),
        lines=tuple(map(place, series)),
        levels=tuple(DrawnLevel(level, down(level.y)) for level in levels if math.isfinite(level.y)),
    )


def ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that span [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next((m * power for m in (1, 2, 5) if span / (m * power) <= about), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """The shortest way to write a tick, with a real minus sign."""
    return f"{value:.6g}".replace("-", "−")


def _points(spots: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in spots)
