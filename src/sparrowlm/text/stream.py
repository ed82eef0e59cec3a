"""Text from token ids as they come, with no character shown before all its bytes are there."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class TextStream:
    r"""Incremental decoding of UTF-8 bytes that are cut anywhere.

    Bytes that can never become a character turn into U+FFFD, as `bytes.decode` would have it:
    what `push` and `finish` return, joined, equals `decode(all ids)`.

    >>> pieces = {0: b"\xe9\xba", 1: b"\xbb", 2: b"!"}
    >>> stream = TextStream(pieces.__getitem__)
    >>> [stream.push(0), stream.push(1), stream.push(2), stream.finish()]
    ['', '麻', '!', '']
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        """
        Args:
            token_bytes: the bytes of an id, such as `Tokenizer.token_bytes`.
        """
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes; often none in the middle of a character."""
        return self._decoder.decode(self._token_bytes(token))

    def finish(self) -> str:
        """What is left: U+FFFD where the last character is incomplete. The stream starts anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` begin `mark`; never all of it.

    >>> overlap("a text <thi", "<think>")
    4
    """
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
