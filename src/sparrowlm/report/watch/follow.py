"""A log that grows, is cut back and is cut off while it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sparrowlm.report.read import Row

CHUNK = 1 << 20  # bytes of one reading, and the longest line that is taken
REMEMBERED = 256  # bytes before the place reached, to see whether they are still the same


class News(NamedTuple):
    """What a reading brought."""

    rows: list[Row]
    restarted: bool = False
    """The log was cut back or replaced: what was told before holds no longer, and `rows` is from
    the beginning."""


class Follower:
    """Reads a JSON-lines file from where it stopped the last time.

    A last line without its end is left for later, since its writer may be at work. A run that is
    resumed cuts its logs back to a checkpoint and then writes on, maybe past the place that was
    reached here before anyone looks again; so not only the size is compared, but the bytes before
    that place too, which hold clock times and are therefore never the same twice.

    Args:
        path: the file; may be absent, and may come later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0  # everything before was told
        self.behind = _size(path)  # bytes that the next reading may bring
        self.broken = 0  # lines that are no JSON, or longer than a reading
        self._before = b""
        self._in_long_line = False

    def read(self, limit: int = CHUNK) -> News:
        """The rows that are whole by now, of at most `limit` bytes; more may wait (`behind`)."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                restarted = not self._still_there(file, size)
                if restarted:
                    self._forget()
                file.seek(self.offset)
                content = file.read(limit)
        except OSError:  # not there yet, or gone
            restarted = self.offset > 0
            self._forget()
            return News([], restarted)
        full = len(content) == limit
        lines = self._whole_lines(content, full=full)
        # What follows the last line end of a file is no line, until its writer ends it.
        self.behind = max(size - self.offset, 0) if full else 0
        return News([row for line in lines if (row := self._row(line)) is not None], restarted)

    def _still_there(self, file: BinaryIO, size: int) -> bool:
        """Whether the file still begins with what was read."""
        if size < self.offset:
            return False
        file.seek(self.offset - len(self._before))
        return file.read(len(self._before)) == self._before

    def _forget(self) -> None:
        self.offset = self.behind = self.broken = 0
        self._before, self._in_long_line = b"", False

    def _whole_lines(self, content: bytes, *, full: bool) -> list[bytes]:
        """The lines that end inside of `content`; the place reached moves behind them."""
        end = content.rfind(b"\n") + 1
        if not end and full:  # a line that no reading holds is passed over, piece by piece
            end, lines = len(content), []
            self.broken += not self._in_long_line
            self._in_long_line = True
        else:
            lines = content[:end].split(b"\n")[:-1]
            if self._in_long_line and lines:
                self._in_long_line = False
                del lines[0]
        self.offset += end
        self._before = (self._before + content[:end])[-REMEMBERED:]
        return lines

    def _row(self, line: bytes) -> Row | None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # JSON's and UTF-8's faults, and a hostile depth
            self.broken += 1
            return None
        return row if isinstance(row, dict) else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
