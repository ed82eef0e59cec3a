"""Options that count something."""

from __future__ import annotations

from sparrowlm.errors import ConfigError


def at_least(least: int, **counts: int) -> None:
    """Refuse counts that mean nothing: one below zero would be counted from the end.

    Args:
        least: what each may be at least.
        counts: of each option its value; `row_tokens` stands for --row-tokens.

    Raises:
        ConfigError: one is less; the first such.

    >>> at_least(0, rows=3, row_tokens=128)
    """
    for name, count in counts.items():
        if count < least:
            raise ConfigError(
                f"is {count}, and must be {least} or more", where=f"--{name.replace('_', '-')}"
            )
