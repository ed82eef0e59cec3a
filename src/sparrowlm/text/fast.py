"""tiktoken over the merges of any byte-level vocabulary, with the ids of `tokenizers`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sparrowlm.text.definition import (
    BYTE_TO_CHARACTER,
    CHARACTER_TO_BYTE,
    PATTERNS,
    Definition,
    merges_of,
    special_ids,
    vocab_of,
)

Ids = np.ndarray  # (n,) uint32

# Texts above this are cut where the pattern cuts anyway, so that threads share one large document.
CHUNK = 1 << 17
# fancy-regex, inside tiktoken, keeps a state for each character of a run of white space and gives
# up at a million of them.
LONGEST_RUN = 900_000
SPACES = r"\t\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space
RUN = re.compile(rf"[{SPACES}\r\n]+")
# A run that is one piece up to its last character: under Qwen2's pattern one without line ends.
LONE_RUN = {
    PATTERNS["qwen2"]: re.compile(rf"[{SPACES}]++(?![\r\n])"),
    PATTERNS["gpt2"]: RUN,
}
SAFE_CUT = re.compile(r"(?=\S\n\S)")


class TiktokenEncoder:
    """tiktoken over the same merges.

    tiktoken merges any two neighbors whose union is a token, lowest rank first; `tokenizers`
    merges listed pairs, first in the list first. `ranks_of` says when both are the same.
    """

    name = "tiktoken"

    def __init__(self, pattern: str, ranks: dict[bytes, int], ids: np.ndarray) -> None:
        """
        Args:
            pattern: how text is cut.
            ranks: bytes of a token to its place in the merge order, single bytes first.
            ids: (len(ranks),) uint32, the id of each rank.
        """
        import tiktoken

        self._cuts = pattern in PATTERNS.values()
        self._ids = ids
        self._ranks = ranks
        self._pattern = pattern
        self._encoding = tiktoken.Encoding(
            "sparrow", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Ids]:
        if not texts:
            return []
        chunks: list[str] = []
        counts: list[int] = []
        for text in texts:
            before = len(chunks)
            chunks += safe_chunks(text) if self._cuts and len(text) > CHUNK else [text]
            counts.append(len(chunks) - before)
        parts = iter(self._encode_chunks(chunks, threads))
        joined = []
        for count in counts:
            own = [next(parts) for _ in range(count)]
            joined.append(own[0] if count == 1 else np.concatenate(own))
        return joined

    def _encode_chunks(self, chunks: list[str], threads: int) -> list[Ids]:
        """Chunks without a very long run go to the threads."""
        hard = {number for number, chunk in enumerate(chunks) if has_long_run(chunk)}
        easy = [chunk for number, chunk in enumerate(chunks) if number not in hard]
        if threads > 1 and len(easy) > 1:
            ranks = iter(self._encoding.encode_ordinary_batch(easy, num_threads=threads))
        else:
            ranks = map(self._encoding.encode_ordinary, easy)
        return [
            self._ids[
                np.array(self._hard_ranks(chunk) if number in hard else next(ranks), np.int64)
            ]
            for number, chunk in enumerate(chunks)
        ]

    def _hard_ranks(self, text: str) -> list[int]:
        """Very long runs of spaces are merged apart; what still holds one is cut by the
        reference's own engine."""
        ranks: list[int] = []
        for part, is_piece in lone_runs(text, self._pattern):
            if is_piece:
                ranks += self._whole.encode_ordinary(part)
            elif has_long_run(part):
                for piece, _ in self._split.pre_tokenize_str(part):
                    ranks += self._whole.encode_ordinary(piece)
            else:
                ranks += self._encoding.encode_ordinary(part)
        return ranks

    @cached_property
    def _whole(self) -> Any:
        """The same merges over a text that is one piece."""
        import tiktoken

        return tiktoken.Encoding(
            "sparrow-piece", pat_str=r"[\s\S]+", mergeable_ranks=self._ranks, special_tokens={}
        )

    @cached_property
    def _split(self) -> Any:
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import Split

        return Split(Regex(self._pattern), "isolated")


def ranks_of(definition: Definition, raw: Any) -> tuple[dict[bytes, int], np.ndarray] | None:
    """Ranks for tiktoken, or None where merging by them could give other ids.

    They give the same ids on every text if the single bytes are all there, every token comes from
    one merge, and every token, encoded alone, is that token. For take the first step at which the
    two ways differ: neighbors x and y whose union t is a token, though (x, y) is not the pair
    listed for t. No merge has crossed the borders of t so far, so encoding t alone passes through
    the same state [x, y]; but it ends in t, and so its last state of two parts is the listed pair.
    """
    vocab, merges = vocab_of(definition), merges_of(definition)
    model = definition["model"]
    odd = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    if model.get("type") != "BPE" or any(model.get(name) for name in (*odd, "byte_fallback")):
        return None
    pieces = [*BYTE_TO_CHARACTER, *(left + right for left, right in merges)]
    if len(set(pieces)) != len(pieces) or any(piece not in vocab for piece in pieces):
        return None
    reachable = len(pieces) + sum(text in vocab for text in special_ids(definition))
    if model.get("ignore_merges") and reachable != len(vocab):
        return None
    if any(character not in CHARACTER_TO_BYTE for piece in pieces for character in piece):
        return None
    if any(len(raw.model.tokenize(piece)) != 1 for piece in pieces):
        return None
    ranks = {
        bytes(CHARACTER_TO_BYTE[character] for character in piece): rank
        for rank, piece in enumerate(pieces)
    }
    return ranks, np.array([vocab[piece] for piece in pieces], np.uint32)


def safe_chunks(text: str) -> list[str]:
    r"""Cut a long text where both known patterns cut in any case: after a line end that stands
    between two characters that are no space. No piece crosses it (only a literal space or a
    mark is ever joined to what follows), and no lookahead reaches over it.
    """
    chunks, start = [], 0
    while len(text) - start > CHUNK:
        found = SAFE_CUT.search(text, start + CHUNK)
        if found is None:
            break
        cut = found.start() + 2
        chunks.append(text[start:cut])
        start = cut
    chunks.append(text[start:])
    return chunks


def has_long_run(text: str) -> bool:
    """Whether tiktoken would give up on a run of white space."""
    if len(text) < LONGEST_RUN:
        return False
    return any(run.end() - run.start() >= LONGEST_RUN for run in RUN.finditer(text))


def lone_runs(text: str, pattern: str) -> Iterator[tuple[str, bool]]:
    r"""A text in parts that are encoded apart with the same ids, True on those that are one piece.

    A long run of white space is one piece (`\s+(?!\S)`), but for its last character where a
    character that is none follows, which then starts the next part. Under Qwen2's pattern
    `\s*[\r\n]+` takes what comes up to the last line end of the run, so that is not in it.
    """
    done = 0
    for run in LONE_RUN[pattern].finditer(text) if pattern in LONE_RUN else ():
        start, end = run.span()
        if end - start < LONGEST_RUN:
            continue
        end -= end < len(text)
        yield text[done:start], False
        yield text[start:end], True
        done = end
    yield text[done:], False
