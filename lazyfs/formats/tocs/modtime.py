"""Modification times of TOC entries: RFC 3339, with a wider range of years.

The standard library's datetime ends at the years 1 and 9999 and drops nanoseconds, so the
calendar is done here: days are counted in the proleptic Gregorian calendar.
"""

import re

MODTIME_RE = re.compile(
    r"(-?[0-9]{4,9})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:[.,]([0-9]{1,30}))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))",
    re.ASCII,
)
DAYS_IN_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
EPOCH_DAY = 719162  # days from 0001-01-01 to 1970-01-01


def parse_modtime(text: str) -> tuple[int, int]:
    """Return (seconds since 1970, nanoseconds) of *text*, or raise ValueError.

    Seconds are negative before 1970; nanoseconds always count forward.  Digits beyond the ninth
    of a fraction are dropped.
    """
    match = MODTIME_RE.fullmatch(text)
    if match is None:
        raise ValueError(f"time {text[:60]!r} is not in the form of RFC 3339")
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    leap = _is_leap(year)
    if not 1 <= month <= 12 or not 1 <= day <= DAYS_IN_MONTH[month - 1] + (month == 2 and leap):
        raise ValueError(f"time {text!r} has a day that does not exist")
    if hour > 23 or minute > 59 or second > 60:  # 60 in a leap second
        raise ValueError(f"time {text!r} has a time of day that does not exist")
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 - EPOCH_DAY
    days += DAYS_BEFORE_MONTH[month - 1] + (month > 2 and leap) + day - 1
    seconds = days * 86400 + hour * 3600 + minute * 60 + second
    if match[8]:
        zone = int(match[9]) * 3600 + int(match[10]) * 60
        seconds += zone if match[8] == "-" else -zone
    return seconds, int(match[7].ljust(9, "0")[:9]) if match[7] else 0


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
