r"""JSON arrays, element by element: an array larger than memory is read as any other.

What ends an element is found by counting brackets outside of strings, and only then is it parsed.
So one that is malformed is rejected alone, and reading goes on behind the next comma.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from sparrowlm.text.reading import OnRead, decode_file
from sparrowlm.text.rows import (
    LARGEST_ROW,
    Rejected,
    Row,
    as_row,
    is_text,
    read_row_lines,
    row_text,
)

# A whole string; a bracket or comma; the quote of a string whose end is not there yet.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{},]|"', re.DOTALL)


class Element(NamedTuple):
    """The text of one element, and where it is."""

    content: str
    line: int  # 1-based, on which it begins
    fault: str = ""  # what is wrong with the array here


def read_json(path: Path, text_key: str, on_read: OnRead = None) -> Iterator[Row]:
    """Of a `.json` file, one row for each element of its array. A file that begins with anything
    but a bracket is read as JSON lines, which many are in spite of their name.

    Raises:
        DataError: the file cannot be read or is truncated.
    """
    for line, content, fault in read_elements(path, on_read):
        if fault:
            yield Rejected(str(path), line, fault)
        else:
            yield as_row(str(path), line, *row_text(content, text_key))


def read_elements(path: Path, on_read: OnRead = None) -> Iterator[tuple[int, bytes, str]]:
    """(line, content, fault) of every element of a `.json` file, as yet unparsed; of every line
    where it does not begin with a bracket.

    Raises:
        DataError: the file cannot be read or is truncated.
    """
    if not _is_array(path):
        yield from read_row_lines(path, on_read)
        return
    line, rest = 1, ""
    texts = decode_file(path, "utf-8", on_read, errors="surrogateescape")
    for text in texts:
        before, bracket, rest = text.partition("[")
        line += before.count("\n")
        if bracket:
            break
    for element in split_array(chain([rest], texts), line):
        if element.fault:
            yield element.line, b"", element.fault
        elif not is_text(element.content):
            yield element.line, b"", "not UTF-8"
        else:
            yield element.line, element.content.encode(), ""


def _is_array(path: Path) -> bool:
    """Whether the first character that is not white space is a bracket."""
    for text in decode_file(path, "utf-8", errors="surrogateescape"):
        if head := text.lstrip():
            return head.startswith("[")
    return False


def split_array(texts: Iterator[str], line: int = 1) -> Iterator[Element]:
    """The elements of an array, unparsed.

    Args:
        texts: what follows the opening bracket, in pieces.
        line: that the first piece begins on.

    Yields:
        Every element. Where the array does not end, ends early or an element goes on beyond
        `LARGEST_ROW`, one with a fault comes last.
    """
    buffer, scanned, depth, wanted = "", 0, 0, 0
    follows = False  # a comma: an element must come
    for text in chain(texts, [""]):
        buffer += text
        if text and len(buffer) < wanted:
            continue
        start = 0
        for token in _TOKEN.finditer(buffer, scanned):
            scanned = token.start()
            mark = token[0]
            if mark == '"':
                break
            scanned = token.end()
            if mark in "[{":
                depth += 1
            elif mark == "]" and not depth:
                content = buffer[start : token.start()]
                if follows or content.strip():
                    yield Element(content, line + _leading_lines(content))
                line += content.count("\n")
                yield from _behind(chain([buffer[token.end() :]], texts), line)
                return
            elif mark in "]}":
                depth = max(0, depth - 1)
            elif mark == "," and not depth:
                content = buffer[start : token.start()]
                yield Element(content, line + _leading_lines(content))
                line += content.count("\n")
                start, follows = token.end(), True
        else:
            scanned = len(buffer)
        buffer, scanned = buffer[start:], scanned - start
        wanted = 2 * len(buffer)  # a string is looked through anew: seldom, so that it stays linear
        if len(buffer) > LARGEST_ROW:
            fault = "the element does not end: a quote or a bracket is left open"
            yield Element("", line + _leading_lines(buffer), fault)
            return
    yield Element("", line + _leading_lines(buffer), "the array does not end")


def _behind(texts: Iterator[str], line: int) -> Iterator[Element]:
    """One fault where anything but white space follows the array."""
    for text in texts:
        if text.strip():
            yield Element("", line + _leading_lines(text), "more follows the end of the array")
            return
        line += text.count("\n")


def _leading_lines(text: str) -> int:
    """Line ends before the first character that is not white space."""
    return text.count("\n", 0, len(text) - len(text.lstrip()))
