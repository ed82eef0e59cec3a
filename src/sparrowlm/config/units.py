"""Settings with a unit: `"2000 steps"`, `"3 minutes"`, `"300M tokens"`, `"4GB"`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sparrowlm.errors import ConfigError

_UNITS = {
    "step": ("steps", 1.0),
    "epoch": ("epochs", 1.0),
    "token": ("tokens", 1.0),
    "second": ("seconds", 1.0),
    "minute": ("seconds", 60.0),
    "hour": ("seconds", 3600.0),
}
_SCALE = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Span:
    """A length of training: an amount and one of steps, epochs, tokens, seconds."""

    amount: float
    unit: str


def parse_span(text: str, *, key: str, units: tuple[str, ...]) -> Span:
    """Read `"2000 steps"`, `"1.5 epochs"`, `"300M tokens"`, `"3 minutes"`.

    Args:
        text: the setting.
        key: the config key, for the message.
        units: which of steps, epochs, tokens, seconds are allowed here (seconds admits minutes
            and hours).

    Raises:
        ConfigError: no positive number, or a unit that is unknown or not allowed.

    >>> parse_span("3 minutes", key="train.length", units=("seconds",))
    Span(amount=180.0, unit='seconds')
    """
    found = re.fullmatch(r"\s*([0-9._]+(?:[eE][+-]?\d+)?)\s*([KMBGT]?)\s*([A-Za-z]+)\s*", text)
    word = found[3].lower().removesuffix("s") if found else ""
    unit, factor = _UNITS.get(word, ("", 0.0))
    if found is None or unit not in units:
        allowed = ", ".join(f'"20 {name}"' for name in units)
        raise ConfigError(f'"{text}" is not a length', where=key, fix=f"write one of {allowed}")
    try:
        amount = float(found[1]) * _SCALE[found[2]] * factor
    except ValueError as fault:
        raise ConfigError(f'"{text}" has no number', where=key) from fault
    if not (0 < amount < math.inf):
        raise ConfigError(f'"{text}" must be above zero', where=key)
    return Span(amount, unit)


def parse_bytes(text: str, *, key: str) -> int:
    """Read `"4GB"` (10^9) or `"4GiB"` (2^30) as bytes.

    >>> parse_bytes("4GB", key="--memory")
    4000000000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _BYTES:
        raise ConfigError(f'"{text}" is not a size', where=key, fix='write "4GB" or "512MiB"')
    return int(float(found[1]) * _BYTES[found[2].upper()])


def show_count(amount: float) -> str:
    """A number in three digits.

    >>> [show_count(n) for n in (0.5, 950, 21_400, 26_878_464, 3e12)]
    ['0.5', '950', '21.4k', '26.9M', '3T']
    """
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= scale * 0.9995:
            return f"{amount / scale:.3g}{letter}"
    return f"{amount:.3g}"


def show_bytes(amount: float) -> str:
    """A size in powers of ten.

    >>> [show_bytes(n) for n in (512, 53_760_000, 4e9)]
    ['512 B', '53.8 MB', '4 GB']
    """
    for scale, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(amount) >= scale * 0.9995:
            return f"{amount / scale:.3g} {name}"
    return f"{amount:.0f} B"


def show_clock(seconds: float) -> str:
    """A time as a clock shows it.

    >>> [show_clock(s) for s in (7, 62, 4325)]
    ['0:07', '1:02', '1:12:05']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_duration(seconds: float) -> str:
    """A time as a sentence says it.

    >>> [show_duration(s) for s in (0.25, 52, 182, 4325, 5e5, 1e9)]
    ['0.25 s', '52 s', '3 min 2 s', '1 h 12 min', '5.8 days', '32 years']
    """
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 2 * 365 * 24 * 60:
        return f"{minutes / (365 * 24 * 60):,.0f} years"
    if minutes >= 72 * 60:
        return f"{minutes / (24 * 60):.1f} days"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
