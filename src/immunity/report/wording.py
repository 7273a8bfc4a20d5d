"""Figures as text: a dash for what is undefined, a real minus sign, and no more than is known."""

import math

from immunity.report.statistics import Interval, Summary

UNDEFINED = "—"


def percent(value: float, digits: int = 1) -> str:
    return f"{_hundredfold(value, digits)}%" if math.isfinite(value) else UNDEFINED


def points(share: float, *, sign: bool = False) -> str:
    """A difference of shares."""
    plus = "+" if sign and share >= 0 else ""
    return UNDEFINED if math.isnan(share) else plus + _hundredfold(share, 1)


def spread(interval: Interval) -> str:
    """The ends of an interval of shares, in per cent; nothing where there is none."""
    if math.isnan(interval.low):
        return ""
    return f"{_hundredfold(interval.low, 1)} to {_hundredfold(interval.high, 1)}%"


def steps_needed(found: Summary, steps: float) -> str:
    """Of one of its two crossings."""
    return f"at most {steps:.0f}" if found.early(steps) else f"{steps:.0f}"


def budget(found: Summary) -> tuple[str, str]:
    """The multiplier and its interval; '>' where the attack ended first, '≥' where the control was back by the first
    look, a dash where nothing is known or all hangs on a few pictures."""
    if found.times is None:
        return (UNDEFINED if math.isnan(found.at_least) else f"≥{found.at_least:.1f}×"), ""

    def times(value: float) -> str:
        return f">{found.beyond:.1f}×" if math.isinf(value) else f"{value:.1f}×"

    value, low, high = found.times
    # An infinite end is beyond what the attack's length tells, by the control's steps as measured: a finite end that
    # comes of other steps, and lies beyond that as well, adds nothing.
    known = math.isfinite(low) and (math.isfinite(high) or low < found.beyond)
    return times(value), f"{times(low)} to {times(high)}" if known else ""


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def joined(*notes: str) -> str:
    """What there is of the notes, in one line."""
    return " · ".join(filter(None, notes))


def _hundredfold(share: float, digits: int) -> str:
    # Adding zero turns the −0.0 that rounding leaves into 0.0.
    return f"{round(100 * share, digits) + 0.0:.{digits}f}".replace("-", "−")
