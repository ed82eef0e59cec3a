from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sparrowlm import files
from sparrowlm.config.schema import DataConfig
from sparrowlm.data import sources, split, writer
from sparrowlm.data.prepare import Summary, prepare
from sparrowlm.data.shards import Dataset, open_dataset
from sparrowlm.data.sources import Source
from sparrowlm.errors import ConfigError, DataError, RunError
from sparrowlm.text import documents
from sparrowlm.text.documents import safe_cut
from sparrowlm.text.tokenizer import Tokenizer, byte_tokenizer, character_tokenizer, load_tokenizer

POEMS = [f"{number}\nthe moon is {number * number}\n麻雀" for number in range(400)]


def write_rows(path: Path, texts: list[str]) -> Path:
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(content.encode()))
        case ".zst":
            path.write_bytes(zstandard.compress(content.encode()))
        case _:
            path.write_bytes(content.encode())
    return path


def prepared(
    folder: Path, inputs: list[Path], tokenizer: Tokenizer | None = None, **settings: object
) -> tuple[Summary, Dataset]:
    config = DataConfig(**({"workers": 1} | settings))  # pyright: ignore[reportArgumentType]
    chosen = tokenizer or byte_tokenizer()
    summary = prepare([str(path) for path in inputs], chosen, folder, config)
    return summary, open_dataset(folder, verify=True)


def texts_of(dataset: Dataset, side: str) -> list[str]:
    """The documents of a split, from its tokens and offsets."""
    tokens = getattr(dataset, side)
    starts = [*tokens.document_starts.tolist(), len(tokens)]
    found = []
    for start, stop in pairwise(starts):
        ids = tokens.read(start, stop - start).tolist()
        if dataset.eot_id is not None:
            assert ids.pop() == dataset.eot_id
            assert dataset.eot_id not in ids
        found.append(dataset.tokenizer.decode(ids))
    return found


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_rows_become_documents_of_two_sides(tmp_path: Path, name: str) -> None:
    summary, dataset = prepared(tmp_path / "out", [write_rows(tmp_path / name, POEMS)])
    train, val = texts_of(dataset, "train"), texts_of(dataset, "val")
    assert sorted(train + val) == sorted(POEMS)
    assert train == [text for text in POEMS if text in set(train)]  # in the order of the input
    assert 20 < len(val) < 60
    assert summary.accepted == len(POEMS)
    assert summary.rejected == 0
    for name, texts in (("train", train), ("val", val)):
        facts = dataset.description["splits"][name]
        size = sum(len(text.encode()) for text in texts)
        assert facts["documents"] == len(texts)
        assert facts["bytes"] == size
        assert facts["tokens"] == size + len(texts)
    assert dataset.val_bytes() == "".join(val).encode()
    assert np.fromfile(tmp_path / "out" / "val-00000.bin", "<u2").size == len(dataset.val or [])
    assert not list((tmp_path / "out").glob("spool*"))


def test_a_prepared_dataset_is_not_read_as_text(tmp_path: Path) -> None:
    prepared(tmp_path / "out", [write_rows(tmp_path / "a.jsonl", POEMS)])
    with pytest.raises(DataError, match="out: is a prepared dataset, and text is wanted"):
        prepared(tmp_path / "again", [tmp_path / "out"], skip_bad=True)


def test_a_side_is_decided_by_text_alone(tmp_path: Path) -> None:
    """The same text on the same side, whatever else there is and wherever it stands."""
    _, first = prepared(tmp_path / "a", [write_rows(tmp_path / "a.jsonl", POEMS)])
    other = [*POEMS[::-1], *(f"more {number}" for number in range(200)), *POEMS[:50]]
    _, second = prepared(tmp_path / "b", [write_rows(tmp_path / "b.jsonl", other)])
    held = set(texts_of(first, "val"))
    assert held <= set(texts_of(second, "val"))
    assert not held & set(texts_of(second, "train"))


def test_the_split_never_changes() -> None:
    """Datasets of different versions compare only while these stay."""
    held = [number for number in range(60) if split.falls_out(str(number).encode(), 0.1)]
    assert held == [0, 5, 16, 52]


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparrowlm.data import build, reader

    monkeypatch.setattr(reader, "LOAD_PIECES", 7)
    inputs = [write_rows(tmp_path / "a.jsonl.zst", POEMS)]
    prepared(tmp_path / "one", inputs)
    if workers == 3:  # threads
        monkeypatch.setattr(build, "_workers", lambda *_: (3, False))
    prepared(tmp_path / "many", inputs, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_workers_need_no_torch() -> None:
    program = (
        "import sparrowlm.data.prepare, sparrowlm.text.tokenizer, sys\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_shakespeare_is_nanogpts_own_dataset(shared_data: Path, tmp_path: Path) -> None:
    """nanoGPT's data/shakespeare_char/prepare.py: 1,003,854 and 111,540 tokens."""
    path = shared_data / "tinyshakespeare.txt"
    text = path.read_text()
    chars = sorted(set(text))
    _, dataset = prepared(tmp_path / "out", [path], character_tokenizer(chars), split="tail")
    stoi = {char: number for number, char in enumerate(chars)}
    cut = int(len(text) * 0.9)
    assert (len(dataset.train), len(dataset.val or []), dataset.vocab_size) == (1003854, 111540, 65)
    for name, part in (("train", text[:cut]), ("val", text[cut:])):
        reference = np.array([stoi[char] for char in part], dtype=np.uint16).tobytes()
        assert (tmp_path / "out" / f"{name}-00000.bin").read_bytes() == reference


def test_shakespeare_in_gpt2_tokens_has_nanogpts_counts(shared_data: Path, tmp_path: Path) -> None:
    """nanoGPT's data/shakespeare/prepare.py: 301,966 and 36,059 tokens, end-of-text apart."""
    gpt2 = load_tokenizer(shared_data / "tokenizers" / "gpt2")
    path = shared_data / "tinyshakespeare.txt"
    _, dataset = prepared(tmp_path / "out", [path], gpt2, split="tail")
    assert (len(dataset.train) - 1, len(dataset.val or []) - 1) == (301966, 36059)


def test_tang_poems_are_all_there(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "tang_poems.jsonl.zst"
    rows = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().splitlines()
    summary, dataset = prepared(tmp_path / "out", [path])
    assert summary.accepted == len(rows) == 56885
    texts = [json.loads(row)["text"] for row in rows]
    size = sum(len(text.encode()) for text in texts)
    facts = summary.splits
    assert facts["train"]["bytes"] + facts["val"]["bytes"] == size
    assert facts["train"]["documents"] + facts["val"]["documents"] == len(texts)
    assert 0.09 < facts["val"]["bytes"] / size < 0.11
    starts = dataset.train.document_starts
    assert starts is not None
    held = [split.falls_out(text.encode(), 0.1) for text in texts]
    kept = [text for text, out in zip(texts, held, strict=True) if not out]
    for number in (0, 1, 777, len(kept) - 2):
        ids = dataset.train.read(int(starts[number]), int(starts[number + 1] - starts[number]))
        assert ids[-1] == dataset.eot_id
        assert ids[:-1].astype(np.uint8).tobytes() == kept[number].encode()


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "broken\n{"body": "other"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        prepared(tmp_path / "out", [path])
    assert not (tmp_path / "out").exists()
    path.write_text('{"text": "fine"}\n{"texts": "other"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:2: no key 'text'; did you mean 'texts'\?"):
        prepared(tmp_path / "out", [path])
    assert [left.name for left in tmp_path.iterdir()] == ["a.jsonl"]


def test_accepted_and_rejected_are_all_lines(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}).encode() for text in POEMS[:60]]
    bad = [b"{", b"", b"[1]", b'{"text": 3}', b'{"body": "x"}', b"\xff", b'{"text": "\\ud800"}']
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*rows[:20], *bad, *rows[20:]]) + b"\n")
    summary, dataset = prepared(tmp_path / "out", [path], skip_bad=True)
    assert (summary.accepted, summary.rejected) == (60, len(bad))
    assert summary.accepted + summary.rejected == path.read_bytes().count(b"\n")
    listed = (tmp_path / "out" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["line"] for row in listed] == list(range(21, 21 + len(bad)))
    assert summary.shown[0].startswith(f"{path}:21: not JSON")
    assert len(texts_of(dataset, "train") + texts_of(dataset, "val")) == 60


def test_a_wrong_encoding_is_named_or_counted(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"ok\nok\n" + "麻雀".encode("gb18030"))
    with pytest.raises(DataError, match=r"bad\.txt:3: is not utf-8"):
        prepared(tmp_path / "out", [tmp_path / "bad.txt"])
    (tmp_path / "good.txt").write_text("good\n" * 100, encoding="utf-8")
    inputs = [tmp_path / "bad.txt", tmp_path / "good.txt"]
    summary, dataset = prepared(tmp_path / "skip", inputs, skip_bad=True)
    assert (summary.accepted, summary.rejected) == (1, 1)
    assert (dataset.train_bytes() or b"") + (dataset.val_bytes() or b"") == b"good\n" * 100
    _, read = prepared(tmp_path / "gb", [tmp_path / "bad.txt"], encoding="gb18030")
    assert (read.train_bytes() or b"") + (read.val_bytes() or b"") == "ok\nok\n麻雀".encode()


def test_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty\.txt:1: holds no text"):
        prepared(tmp_path / "out", [tmp_path / "empty.txt"])
    write_rows(tmp_path / "a.jsonl", ["", ""])
    with pytest.raises(DataError, match="of 2 rows, 0 were rejected and the rest are empty"):
        prepared(tmp_path / "out", [tmp_path / "a.jsonl"])
    with pytest.raises(DataError, match="no such file"):
        prepared(tmp_path / "out", [tmp_path / "absent.txt"])
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="1 characters are too few to hold out"):
        prepared(tmp_path / "out", [tmp_path / "x.txt"])
    assert not (tmp_path / "out").exists()


def test_a_plain_file_is_one_document_and_splits_at_a_line_end(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(100))
    (tmp_path / "a.txt").write_text(text)
    summary, dataset = prepared(tmp_path / "out", [tmp_path / "a.txt"])
    train, val = texts_of(dataset, "train"), texts_of(dataset, "val")
    assert "".join(train + val) == text
    assert len(train) == len(val) == 1
    assert train[0].endswith("\n")
    assert len(train[0]) <= 0.9 * len(text) < len(train[0]) + 9
    assert summary.accepted == 1
    assert summary.notes == (
        "held out: the last 10%, by position at a line end, since the data is one document",
    )


def test_a_line_of_end_of_text_parts_documents_and_that_is_said(tmp_path: Path) -> None:
    texts = [f"story {number}" for number in range(100)]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(texts) + "\n<|endoftext|>\n")
    summary, dataset = prepared(tmp_path / "out", [tmp_path / "a.txt"])
    assert sorted(texts_of(dataset, "train") + texts_of(dataset, "val")) == sorted(texts)
    assert summary.accepted == 100
    assert any("a line of <|endoftext|> ends a document" in note for note in summary.notes)
    (tmp_path / "b.txt").write_text("%%".join(texts))
    summary, dataset = prepared(tmp_path / "b", [tmp_path / "b.txt"], document_separator="%%")
    assert sorted(texts_of(dataset, "train") + texts_of(dataset, "val")) == sorted(texts)
    summary, _ = prepared(tmp_path / "c", [tmp_path / "b.txt"], document_separator="@@")
    assert any("'@@' was not found" in note for note in summary.notes)


def test_one_large_document_makes_the_split_go_by_position(tmp_path: Path) -> None:
    texts = [*POEMS, "x\n" * 1000]
    summary, dataset = prepared(tmp_path / "out", [write_rows(tmp_path / "a.jsonl", texts)])
    size = sum(len(text.encode()) for text in texts)
    assert f"one document is {2000 / size:.0%} of the bytes" in summary.notes[0]
    assert dataset.description["split"]["rule"] == "tail"
    *before, cut = texts_of(dataset, "train")
    (rest,) = texts_of(dataset, "val")
    assert before == POEMS
    assert cut + rest == texts[-1]


def test_an_empty_side_makes_the_split_go_by_position(tmp_path: Path) -> None:
    held = [text for text in POEMS if split.falls_out(text.encode(), 0.1)]
    kept = [text for text in POEMS if text not in set(held)][: len(held)]
    for name, texts, what in (("none", kept, "none"), ("all", held, "all")):
        path = write_rows(tmp_path / f"{name}.jsonl", texts)
        summary, dataset = prepared(tmp_path / name, [path])
        assert f"since by hash {what} of the documents would be held out" in summary.notes[0]
        assert texts_of(dataset, "train") + texts_of(dataset, "val") == texts
        assert 1 <= len(texts_of(dataset, "val")) <= 5


def test_tail_keeps_small_documents_whole(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", POEMS)
    _, dataset = prepared(tmp_path / "out", [path], split="tail", val_fraction=0.25)
    train, val = texts_of(dataset, "train"), texts_of(dataset, "val")
    assert train + val == POEMS
    characters = sum(map(len, POEMS))
    assert abs(sum(map(len, train)) - 0.75 * characters) < 20


def test_nothing_held_out_is_allowed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", POEMS)
    _, dataset = prepared(tmp_path / "out", [path], val_fraction=0.0)
    assert dataset.val is None
    assert texts_of(dataset, "train") == POEMS
    with pytest.raises(ConfigError, match=r"data\.val_fraction: is 1"):
        prepared(tmp_path / "x", [path], val_fraction=1)


def test_groups_stay_together(tmp_path: Path) -> None:
    found = []
    for group in range(40):
        for number in range(3):
            path = tmp_path / f"{group}-{number}.py"
            path.write_text(f"# module {group}\nnumber = {number}\n" * 5)
            found.append(Source(path, f"module{group}"))
    prepare(found, byte_tokenizer(), tmp_path / "out", DataConfig(workers=1))
    dataset = open_dataset(tmp_path / "out")

    def groups(side: str) -> set[str]:
        return {text.split("\n")[0] for text in texts_of(dataset, side)}

    assert not groups("train") & groups("val")
    assert len(groups("val")) == 4
    assert dataset.description["split"]["rule"] == "group"
    with pytest.raises(DataError, match="some sources have a group and some have none"):
        prepare([*found, Source(found[0].path)], byte_tokenizer(), tmp_path / "x", DataConfig())


def test_held_groups_are_close_to_their_share() -> None:
    sizes = {f"m{number}": 1 + number**2 for number in range(200)}
    for share in (0.05, 0.1, 0.3):
        held = split.held_groups(sizes, share)
        assert abs(sum(sizes[name] for name in held) / sum(sizes.values()) - share) < 0.01
        assert held == split.held_groups(dict(reversed(sizes.items())), share)
    assert len(split.held_groups({"a": 1, "b": 1000}, 0.1)) == 1
    assert split.held_groups({"a": 1}, 0.1) == frozenset()


def test_long_documents_in_pieces_are_the_same_tokens(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "minimind-3")
    path = shared_data / "wizard_of_oz.txt"
    prepared(tmp_path / "whole", [path], tokenizer)
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 1 << 14)
    prepared(tmp_path / "pieces", [path], tokenizer)
    for name in ("train-00000.bin", "val-00000.bin", "train-documents.u64", "dataset.json"):
        whole, pieces = ((tmp_path / kind / name).read_bytes() for kind in ("whole", "pieces"))
        assert whole == pieces


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="ab \n", max_size=60), min_size=1, max_size=6))
def test_plain_text_in_pieces_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    """Pieces joined are the documents that the readers give whole."""
    from sparrowlm.text.documents import Document, read_documents

    folder = tmp_path_factory.mktemp("pieces")
    path = folder / "a.txt"
    path.write_bytes("\n<|endoftext|>\n".join(texts).encode())
    whole = [row for row in read_documents(path) if isinstance(row, Document)]
    joined: list[tuple[str, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE_CHARACTERS", 8)
        open_before = False
        for piece in sources.read_pieces(Source(path), DataConfig()):
            assert isinstance(piece, documents.Piece)
            assert piece.starts is not open_before
            open_before = not piece.ends
            if piece.starts:
                joined.append((piece.text, piece.line))
            else:
                joined[-1] = (joined[-1][0] + piece.text, joined[-1][1])
        assert not open_before
    assert [text for text, _ in joined if text.strip()] == [
        row.text for row in whole if row.text.strip()
    ]


def test_safe_cut_prefers_a_lone_line_end() -> None:
    assert safe_cut("one\ntwo\n  three") == 4
    assert safe_cut("  one\n  two\n  three") == 12
    assert safe_cut("no line end") == 11
    long = "a\nb" * 5000 + "\n\n" * 9000
    assert long[: safe_cut(long)] == "a\nb" * 4999 + "a\n"


def test_a_vocabulary_above_65536_takes_uint32(tmp_path: Path) -> None:
    characters = [
        chr(number) for number in range(0x20, 0x20 + 70_000) if not 0xD800 <= number < 0xE000
    ]
    text = "".join(characters[::7]) * 2
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    _, dataset = prepared(tmp_path / "out", [tmp_path / "a.txt"], character_tokenizer(characters))
    assert dataset.description["dtype"] == "uint32"
    assert (dataset.train_bytes() or b"") + (dataset.val_bytes() or b"") == text.encode()


def test_small_shards_hold_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", POEMS)
    _, one = prepared(tmp_path / "one", [path])
    monkeypatch.setattr(writer.ShardWriter.__init__, "__defaults__", (1000,))
    monkeypatch.setattr(writer.SplitWriter.__init__, "__defaults__", (1000,))
    monkeypatch.setattr(writer.Spool.__init__, "__defaults__", (700,))
    monkeypatch.setattr(writer, "DEALT", 300)
    _, many = prepared(tmp_path / "many", [path])
    assert len(many.train.paths) > 5
    assert (
        many.train.read(0, len(many.train)).tolist() == one.train.read(0, len(one.train)).tolist()
    )
    assert texts_of(many, "val") == texts_of(one, "val")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", POEMS)
    prepared(tmp_path / "out", [path])
    before = contents(tmp_path / "out")
    with pytest.raises(RunError, match="exists already"):
        prepared(tmp_path / "out", [path])
    assert contents(tmp_path / "out") == before


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", POEMS)
    _, dataset = prepared(tmp_path / "out", [path])
    shard = tmp_path / "out" / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    assert open_dataset(tmp_path / "out").fingerprint == dataset.fingerprint  # sizes alone
    with pytest.raises(RunError, match=r"train-00000\.bin: differs from its manifest"):
        open_dataset(tmp_path / "out", verify=True)
    shard.write_bytes(content[:-2])
    with pytest.raises(DataError, match=r"train-00000\.bin: has \d+ bytes, and the manifest says"):
        open_dataset(tmp_path / "out")


def test_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", POEMS)
    ours, other = tmp_path / ".tmp-out-abcdefgh", tmp_path / ".tmp-out-2-abcdefgh"
    for left in (ours, other):
        left.mkdir()
        (left / "spool-00000.bin").write_bytes(b"half")
    prepared(tmp_path / "out", [path])
    assert not ours.exists()
    assert other.exists()  # may be somebody else's, at work
    files.verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "position", "cut"),
    [("ab\ncd\nef", 4, 3), ("abcd\nef", 2, 5), ("abcdef", 2, 2), ("abcd\n", 2, 2), ("\nab", 2, 1)],
)
def test_line_end_never_leaves_a_side_empty(text: str, position: int, cut: int) -> None:
    assert split.line_end(text, position) == cut
    assert 0 < cut < len(text)
