"""Copy the fenced blocks of an English page into its Chinese sister, which has as many.

    python docs/copy_blocks.py                  # every page that has a sister
    python docs/copy_blocks.py README.md

Commands, programs and outputs are the same in both languages; this keeps them so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from run_page import FENCE

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"


def sister(page: Path) -> Path:
    """Where the Chinese version of an English page is."""
    readme = page.resolve() == README.resolve()
    return page.with_name("README.zh-CN.md") if readme else DOCS / "zh" / page.name


def with_blocks(text: str, blocks: Sequence[str]) -> str:
    """A page's text with other blocks.

    Raises:
        ValueError: it has more or fewer.
    """
    waiting = iter(blocks)
    count = len(FENCE.findall(text))
    if count != len(blocks):
        raise ValueError(f"{len(blocks)} blocks for {count}")
    return FENCE.sub(lambda _: next(waiting), text)


def main() -> None:
    named = [Path(argument) for argument in sys.argv[1:]]
    for page in named or [README, *sorted(DOCS.glob("*.md"))]:
        other = sister(page)
        if other.exists():
            blocks = [found[0] for found in FENCE.finditer(page.read_text(encoding="utf-8"))]
            text = with_blocks(other.read_text(encoding="utf-8"), blocks)
            other.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
