"""Sizes, rates and times as people write them.  Pure: text in, numbers out, and the other way.

A size is a number and a unit: ``B``, powers of 1000 (``kB``, ``MB``, ``GB``, ``TB``) or of 1024
(``KiB`` … ``TiB``; the letter alone means these too, as for coreutils and docker).  A rate is a
size or a number of bits (``bit``, ``Mbit`` …) with ``/s``.  ``b`` means nothing: some write bits so
and some bytes.
"""

import re
from fractions import Fraction

from lazyfs.errors import UsageError
from lazyfs.store.upkeep.budget import Budget

NUMBER = r"([0-9]{1,20}(?:\.[0-9]{1,20})?)"
SIZE_RE = re.compile(NUMBER + r"(?: ?(?:([kmgt])(i?B)?|B))?", re.ASCII | re.IGNORECASE)
BITS_RE = re.compile(NUMBER + r" ?([kmgt])?(i?)bit", re.ASCII | re.IGNORECASE)
SHARE_RE = re.compile(NUMBER + " ?%", re.ASCII)
DURATION_RE = re.compile(NUMBER + " ?([smhd])?", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LETTERS = "kmgt"
LARGEST = (1 << 63) - 1
SHOWN = ("B", "KiB", "MiB", "GiB", "TiB")


class BadQuantity(UsageError):
    """Text that is not a size, share, rate or time."""

    code = "E_QUANTITY"


def parse_budget(text: str) -> Budget:
    """Return what *text* means: a size, or a share of a filesystem such as ``20%``."""
    match = SHARE_RE.fullmatch(text)
    if match is not None:
        percent = Fraction(match[1])
        if percent > 100:
            raise BadQuantity(f"{text[:40]!r} is more than 100%")
        return Budget(share=float(percent / 100))
    value = _size(text)
    if value is None:
        raise BadQuantity(f"{text[:40]!r} is not a size such as 512MiB, 10GB or 20%")
    return Budget(size=_whole(value, text))


def parse_rate(text: str) -> int:
    """Return the bytes a second that *text* means (``10MB/s``, ``100Mbit/s``); 0 for no limit."""
    amount = text.removesuffix("/s")
    value = _size(amount)
    if value is None:
        value = _bits(amount)
    if value is None:
        raise BadQuantity(
            f"{text[:40]!r} is not a rate such as 10MB/s or 100Mbit/s, or 0 for no limit"
        )
    if 0 < value < 1:
        raise BadQuantity(f"{text[:40]!r} is less than one byte a second")
    return _whole(value, text)


def parse_duration(text: str) -> float:
    """Return the seconds that *text* means: ``90s``, ``30m``, ``24h``, ``7d``; ``0`` for none."""
    match = DURATION_RE.fullmatch(text)
    if match is None or (match[2] is None and Fraction(match[1]) != 0):
        raise BadQuantity(f"{text[:40]!r} is not a time such as 90s, 30m, 24h or 7d")
    return float(Fraction(match[1]) * SECONDS[match[2] or "s"])


def size_text(size: float) -> str:
    """Return *size* bytes for a person: ``1.5 MiB``."""
    for unit in SHOWN:
        if size < 1024 or unit == SHOWN[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("not reached")


def _size(text: str) -> Fraction | None:
    """Return the bytes that *text* means, None if it is no size."""
    match = SIZE_RE.fullmatch(text)
    if match is None or text.endswith("b"):
        return None
    number, letter, unit = match.groups()
    is_decimal = unit is not None and len(unit) == 1
    return Fraction(number) * _factor(letter, 1000 if is_decimal else 1024)


def _bits(text: str) -> Fraction | None:
    """Return the bytes that a number of bits makes, None if *text* is no such number."""
    match = BITS_RE.fullmatch(text)
    if match is None:
        return None
    number, letter, binary = match.groups()
    return Fraction(number) * _factor(letter, 1024 if binary else 1000) / 8


def _factor(letter: str | None, base: int) -> int:
    return 1 if letter is None else base ** (1 + LETTERS.index(letter.lower()))


def _whole(value: Fraction, text: str) -> int:
    """Return *value* rounded down."""
    if value > LARGEST:
        raise BadQuantity(f"size {text[:40]!r} is more than {LARGEST} bytes")
    return int(value)
