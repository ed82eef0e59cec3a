"""`sparrow data inspect --chat FILE --tokenizer T`: what of each conversation is learned."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparrowlm.errors import DataError
from sparrowlm.report.words import printable

if TYPE_CHECKING:
    from sparrowlm.data.survey import Sample, Survey
    from sparrowlm.text.chat import Encoded
    from sparrowlm.text.tokenizer import Tokenizer

CONTEXTS = (256, 512, 1024, 2048)
LEARNED, PROMPT = "bold green", "dim"


class Size(NamedTuple):
    """What of a bundle decides how it fits a row."""

    positions: int
    first: int
    """Before the first learned id; of pairs all positions, since none may be cut."""


def inspect_chats(
    path: Path, tokenizer: Tokenizer | None, context: int, shown: int, seed: int, console: Console
) -> None:
    """Show a file of conversations, pairs or labelled completions.

    Raises:
        DataError: no tokenizer is named, or nothing is there that could be shown.
        TokenizerError: the tokenizer knows no turns.
    """
    from sparrowlm.data.packed import samples_of
    from sparrowlm.data.sources import as_sources
    from sparrowlm.data.survey import Survey, kind_of
    from sparrowlm.text.chat import ChatFormat

    if tokenizer is None:
        raise DataError(
            "needs a tokenizer to say which tokens are learned",
            where="--tokenizer",
            fix="name a run, or a tokenizer's folder",
        )
    sources = as_sources([str(path)])
    kind = kind_of(sources, ("pairs", "labelled", "chats"))
    survey, chat = Survey(sources, kind, skip_bad=True), ChatFormat(tokenizer)
    kept: list[tuple[Sample, list[Encoded]]] = []
    sizes: list[Size] = []
    tokens = learned = 0
    draw = random.Random(seed)
    for number, (sample, sides) in enumerate(samples_of(survey, chat)):
        tokens += sum(len(side.ids) for side in sides)
        learned += sum(int(side.mask.sum()) for side in sides)
        sizes.append(_size(sides))
        if len(kept) < shown:
            kept.append((sample, sides))
        elif (place := draw.randrange(number + 1)) < shown:  # each with the same chance
            kept[place] = (sample, sides)
    console.print(Text(f"\n{path}", "bold"), soft_wrap=True)
    console.print(_summary(survey, kind, tokens, learned))
    if sizes:
        contexts = (context,) if context else CONTEXTS
        console.print(_fits(sizes, contexts, pairs=kind == "pairs"))
    for sample, sides in sorted(kept, key=lambda one: (one[0].source, one[0].line)):
        for name, side in zip(
            ("chosen", "rejected") if len(sides) > 1 else ("",), sides, strict=True
        ):
            title = f"\n{Path(sample.source).name}:{sample.line} {name}"
            if kind == "labelled":
                title += "wanted" if sample.label else "not wanted"
            console.print(Text(title, "bold"), soft_wrap=True)
            view = _view(side, tokenizer, marked=not console.is_terminal)
            console.print(view, soft_wrap=not console.is_terminal)


def _size(sides: list[Encoded]) -> Size:
    import numpy as np

    ends = [int(np.flatnonzero(side.mask)[-1]) if side.mask.any() else 0 for side in sides]
    first = int(sides[0].mask.argmax()) if len(sides) == 1 else sum(ends)
    return Size(sum(ends), first)


def _summary(survey: Survey, kind: str, tokens: int, learned: int) -> Table:
    from sparrowlm.data.survey import DISORDER, EMPTY, UNANSWERED

    table = Table.grid(padding=(0, 2))
    rows = survey.accepted + len(survey.rejected)
    table.add_row("rows", Text(f"{rows:,}, of them {survey.accepted:,} {kind}"))
    share = learned / max(1, tokens)
    table.add_row("tokens", Text(f"{tokens:,}, of them {learned:,} learned ({share:.1%})"))
    for what in (EMPTY, UNANSWERED, DISORDER):
        first = next((f"{at}:{line}" for at, line, said in survey.noted if said == what), "")
        example = f", such as {first}" if first else ""
        table.add_row(what, Text(f"{survey.counts.get(what, 0):,}{example}"))
    example = ""
    if survey.rejected:
        row = survey.rejected[0]
        example = f", such as {row.source}:{row.line}: {row.reason}"
    table.add_row("rejected", Text(f"{len(survey.rejected):,}{example}"))
    return table


def _fits(sizes: list[Size], contexts: tuple[int, ...], *, pairs: bool) -> Table:
    """What a row of each length makes of them."""
    from sparrowlm.data.packing import best_fit

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("context", "rows", "padding", "cut", "left out"):
        table.add_column(name, justify="right", no_wrap=True)
    for context in contexts:
        kept = [
            min(size.positions, context)
            for size in sizes
            if size.positions <= context or (not pairs and size.first <= context)
        ]
        cut = 0 if pairs else sum(context < size.positions for size in sizes)
        gone = len(sizes) - len(kept)
        rows = len(best_fit(kept, context))
        padding = f"{1 - sum(kept) / (rows * context):.1%}" if rows else ""
        cells = (context, rows, padding, 0 if pairs else cut - gone, gone)
        table.add_row(*(cell if isinstance(cell, str) else f"{cell:,}" for cell in cells))
    return table


def _view(side: Encoded, tokenizer: Tokenizer, *, marked: bool) -> Text:
    """A conversation with what is learned in color, or between marks where there are no colors."""
    import numpy as np

    from sparrowlm.data.describe import spans

    view = Text()
    borders = (np.flatnonzero(np.diff(side.mask.astype(np.int8))) + 1).tolist()
    for first, last in zip([0, *borders], [*borders, len(side.ids)], strict=True):
        learned = bool(side.mask[first])
        style = LEARNED if learned else PROMPT
        view.append("⟦" if marked and learned else "")
        for span in spans(side.ids[first:last], frozenset(), tokenizer):
            special = span.kind == "special"
            text = f"[{span.text}]" if special else printable(span.text)
            view.append(text, f"{style} reverse" if special else style)
        view.append("⟧" if marked and learned else "")
    return view
