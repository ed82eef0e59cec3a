"""Text that came from a model or a user, made fit for a page or a terminal."""

from __future__ import annotations

import html
import re
import unicodedata

_KEPT = frozenset("\n\t\u200c\u200d")  # zero-width joiners spell scripts and emoji


def printable(text: str) -> str:
    r"""The text with every control character but tab and line end shown as a replacement mark.

    A model of bytes may write an escape sequence, and a terminal would obey it; a direction
    override would turn the rest of a page around.

    >>> printable("a\x1b[2Jb\n")
    'a�[2Jb\n'
    """
    return "".join(
        "\ufffd" if unicodedata.category(mark) in ("Cc", "Cf", "Cs") and mark not in _KEPT else mark
        for mark in text
    )


def escape(value: object) -> str:
    """Anything as HTML text or as an attribute's value; control characters become visible."""
    return html.escape(printable(str(value)), quote=True)


def together(text: str) -> str:
    """The text with a space behind a digit unbreakable, so that a number keeps its unit."""
    return re.sub(r"(?<=\d) (?=[a-z])", "\u00a0", text)
