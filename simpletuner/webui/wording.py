"""Numbers, sizes, durations and times in the reader's language."""

from __future__ import annotations

import math
from datetime import datetime

from babel.dates import format_datetime
from babel.numbers import format_decimal, format_percent, format_scientific
from babel.units import format_unit

NOTHING = "–"
_SIZES = ("B", "kB", "MB", "GB", "TB")
_DURATIONS = (("duration-day", 86_400), ("duration-hour", 3_600), ("duration-minute", 60), ("duration-second", 1))


def number(value: float | None, language: str, *, digits: int = 4) -> str:
    """A number to at most `digits` significant digits; a dash for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return format_decimal(0, locale=language)  # Babel has one digit more of it otherwise
    if not 1e-6 <= abs(value) < 1e7:
        return format_scientific(value, format="0.###E0", locale=language)
    return format_decimal(value, format="@" + "#" * (digits - 1), locale=language, group_separator=False)


def count(value: int | None, language: str) -> str:
    """A whole number with its thousands set apart; a dash for None."""
    return NOTHING if value is None else format_decimal(value, locale=language)


def percent(share: float | None, language: str) -> str:
    """A share of 1 as whole percents; a dash for None."""
    return NOTHING if share is None or not math.isfinite(share) else format_percent(share, locale=language)


def size(amount: float, language: str) -> str:
    """Bytes as kB, MB or GB (powers of 1,000), to three digits."""
    power = 0
    while amount >= 999.5 and power < len(_SIZES) - 1:
        amount, power = amount / 1000, power + 1
    return f"{number(amount, language, digits=3)} {_SIZES[power]}"


def duration(seconds: float | None, language: str) -> str:
    """A duration in its two largest units, such as 2 hr 5 min; a dash for what is unknown."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    left = max(0, round(seconds))
    if left < 1:
        return format_unit(0, "duration-second", "short", locale=language)
    first = next(place for place, (_, length) in enumerate(_DURATIONS) if left >= length)
    words = []
    for unit, length in _DURATIONS[first : first + 2]:
        if left >= length:
            words.append(format_unit(left // length, unit, "short", locale=language))
        left %= length
    return " ".join(words)


def step_time(seconds: float | None, language: str) -> str:
    """The duration of a step in seconds, to three digits; a dash for what is unknown."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    shown = "0" if seconds == 0 else "@##"
    return format_unit(seconds, "duration-second", "short", format=shown, locale=language)


def moment(timestamp: float | None, language: str) -> str:
    """Date and time of day of seconds since 1970, in the server's time zone; a dash for None."""
    if timestamp is None:
        return NOTHING
    return format_datetime(datetime.fromtimestamp(timestamp), "short", locale=language)
