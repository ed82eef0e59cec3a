"""How tokens look: a text cut into them, and the longest ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparrowlm.errors import TokenizerError

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

# Dark letters on light grounds; neighbors differ, also without sense of red and green.
PASTELS = ("#ffd8a8", "#b2d4ff", "#fff3a3", "#d9c2ff", "#c3f0ca", "#ffc9d6")
BASIC = ("cyan", "yellow", "magenta", "white")


def grounds(console: Console) -> tuple[str, ...]:
    """The styles that tokens take in turn; () where the console shows no colors."""
    if console.color_system is None or console.no_color:
        return ()
    if console.color_system in ("standard", "windows"):
        return tuple(f"black on {name}" for name in BASIC)
    return tuple(f"#111111 on {name}" for name in PASTELS)


def cut_view(tokenizer: Tokenizer, text: str, styles: Sequence[str]) -> Text:
    """A text with every token on its own ground, or, without styles, between bars.

    A token that holds only a part of a character shows its bytes; line ends show as ↵.
    """
    try:
        ids = tokenizer.encode(text)
    except TokenizerError as fault:
        return Text(fault.what, "yellow")
    view = Text()
    for number, id in enumerate(ids):
        shown = spell(tokenizer.token_bytes(id), dots=not styles)
        style = styles[number % len(styles)] if styles else ""
        pieces = shown.split("\n")
        for place, piece in enumerate(pieces):
            view.append(piece, style)
            if place < len(pieces) - 1:
                view.append("\n")
        if not styles and not shown.endswith("\n"):
            view.append("│")
    return view


def spell(piece: bytes, *, dots: bool) -> str:
    r"""A token for the eye: ‹e9 ba› for a part of a character, ↵ before a line end, → for a tab,
    an escape for other controls, and · for a space where `dots`.

    >>> spell(b"\xe9\xba", dots=True), spell(b" a\t", dots=True)
    ('‹e9 ba›', '·a→')
    """
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return f"‹{piece.hex(' ')}›"
    marks = {"\n": "↵\n", "\t": "→", " ": "·" if dots else " "}
    shown = (
        marks.get(char) or (char if char.isprintable() else ascii(char)[1:-1]) for char in text
    )
    return "".join(shown)


def longest_view(tokenizer: Tokenizer, count: int, width: int, styles: Sequence[str]) -> Table:
    """The longest tokens with their bytes and ids, in as many columns as `width` allows."""
    from sparrowlm.text.measure import longest

    lengths = tokenizer.byte_lengths()
    cells = []
    for number, id in enumerate(longest(tokenizer, count)):
        shown = _short(spell(tokenizer.token_bytes(id), dots=True).replace("\n", ""))
        style = styles[number % len(styles)] if styles else ""
        cells.append(Text.assemble((f"{lengths[id]:>4} {id:>7} ", "dim"), (shown, style)))
    columns = max(1, min(3, width // 48))
    table = Table.grid(padding=(0, 3))
    rows = -(-len(cells) // columns)
    for row in range(rows):
        table.add_row(*cells[row::rows])
    return table


def _short(text: str, width: int = 32) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
