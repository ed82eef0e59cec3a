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
