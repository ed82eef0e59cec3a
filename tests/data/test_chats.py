"""Conversations and pairs as sequences on disk, and what is counted on the way."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparrowlm import files
from sparrowlm.config import DataConfig, TokenizerConfig
from sparrowlm.data.chats import open_sequences, prepare_sequences
from sparrowlm.data.mixed import Deal
from sparrowlm.data.sequences import PackedStream
from sparrowlm.data.survey import CUT, CUT_AWAY, DISORDER, EMPTY, TOO_LONG, UNANSWERED
from sparrowlm.errors import DataError
from sparrowlm.text.conversations import chat_of, pair_of, read_values
from sparrowlm.text.tokenizer import train_tokenizer
from support import write_parquet

BPE = TokenizerConfig(vocab_size=300)


def turns(*texts: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def learned(folder: Path) -> TokenizerConfig:
    """A vocabulary of more text than a few turns hold."""
    place = folder / "tokenizer"
    if not place.exists():
        place.mkdir()
        train_tokenizer([json.__doc__ or ""], BPE).save(place)
    return TokenizerConfig(kind="folder", path=str(place))


def write(path: Path, rows: list) -> Path:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def prepared(tmp_path: Path, rows: list, kind: str = "chats", seq_len: int = 64, **settings):
    path = write(tmp_path / "rows.jsonl", rows)
    config = DataConfig(path=(str(path),), **settings)
    folder = prepare_sequences(config, learned(tmp_path), tmp_path / "cache", kind, seq_len)
    files.verify(folder)
    return open_sequences(folder)


def said(dataset, split) -> list[str]:
    found = [item for n in range(len(split)) for item in split.bundle(n)]
    return [dataset.tokenizer.decode(one.ids[one.mask], specials=True) for one in found]


def test_chats_of_every_form_are_read(tmp_path: Path) -> None:
    rows = [
        {"conversations": turns("a", "one")},
        {"messages": turns("b", "two")},
        {"instruction": "c", "input": "d", "output": "three"},
        {"conversations": [{"from": "human", "value": "e"}, {"from": "gpt", "value": "four"}]},
    ]
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(rows), encoding="utf-8")
    for path in (write(tmp_path / "rows.jsonl.gz", rows), array):
        found = [row.value for row in read_values(path, chat_of)]
        assert [one.messages[-1]["content"] for one in found] == ["one", "two", "three", "four"]
        assert found[2].messages[0]["content"] == "c\nd"


def test_conversations_in_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"messages": turns("a", "b")}, {"messages": turns("c", "d")}]
    path = tmp_path / "rows.parquet"
    write_parquet(path, f"pa.Table.from_pylist({rows})")
    assert [row.value for row in read_values(path, chat_of)] == [chat_of(row) for row in rows]


def test_columns_that_json_has_no_form_for_are_no_fault_of_a_row(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    columns = f"""{{
        "messages": [{turns("a", "b")}] * 2,
        "at": pa.array([1, 2], pa.timestamp("ns")),
        "seen": [[{{"on": datetime.date(2026, 1, 2)}}], None],
        "price": [decimal.Decimal("1.5"), None],
        "image": [b"PNG", b""],
    }}"""
    write_parquet(tmp_path / "rows.parquet", f"pa.table({columns})")
    first, second = read_values(tmp_path / "rows.parquet", lambda row: row)
    assert first.value == {
        "messages": turns("a", "b"),
        "at": "1970-01-01 00:00:00.000000001",
        "seen": [{"on": "2026-01-02"}],
        "price": "1.5",
        "image": {"bytes": 3},
    }
    assert second.value["image"] == {"bytes": 0}


def test_a_row_that_the_tokenizer_changes_is_one_bad_row(tmp_path: Path) -> None:
    """Of the batch that it is encoded with, the others stay."""
    folder = Path(learned(tmp_path).path)
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    definition["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] += "{# theirs #}"  # so that what is encoded is verified
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = [{"messages": turns(f"q{n}", "cafe\u0301" if n == 3 else "tea")} for n in range(6)]
    with pytest.raises(DataError, match=r"rows\.jsonl:4: the ids .* do not decode") as told:
        prepared(tmp_path, rows, val_fraction=0.0)
    assert "byte-level BPE, or count and list such rows: data.skip_bad" in told.value.fix
    dataset = prepared(tmp_path, rows, val_fraction=0.0, skip_bad=True)
    facts = dataset.description
    assert (facts["accepted"], facts["rejected"], len(dataset.train)) == (5, 1, 5)


def test_prepared_chats_hold_their_answers_and_a_split(tmp_path: Path) -> None:
    rows = [{"conversations": turns(f"q{n}", f"answer {n}")} for n in range(40)]
    dataset = prepared(tmp_path, rows, val_fraction=0.2)
    assert dataset.val is not None
    both = said(dataset, dataset.train) + said(dataset, dataset.val)
    assert sorted(both) == sorted(f"answer {n}<|im_end|>" for n in range(40))
    again = prepared(tmp_path, [*reversed(rows)], val_fraction=0.2)
    assert again.val is not None
    assert sorted(said(again, again.val)) == sorted(said(dataset, dataset.val))


def test_what_is_odd_is_counted_and_named(tmp_path: Path) -> None:
    rows = [
        {"conversations": turns("fine", "yes")},
        {"conversations": turns("q", "long " * 100)},
        {"conversations": turns("long " * 100, "lost")},
        {"conversations": turns("q", "")},
        {"conversations": turns("q", "a", "r", "")},
        {"conversations": turns("no answer")},
        {"conversations": [*turns("one"), *turns("two", "both")]},
        {"conversations": "nothing"},
        "not json\n",
    ]
    with pytest.raises(DataError, match="not a list of messages") as fault:
        prepared(tmp_path, rows)
    assert fault.value.where.endswith("rows.jsonl:8")
    dataset = prepared(tmp_path, rows, skip_bad=True, val_fraction=0.0)
    facts = dataset.description
    assert facts["accepted"] + facts["rejected"] == len(rows)
    assert facts["rejected"] == 2
    expected = {CUT: 1, CUT_AWAY: 1, UNANSWERED: 2, EMPTY: 1, DISORDER: 2}
    assert facts["noted"] == expected
    noted = (Path(facts["folder"]) / "noted.jsonl").read_text(encoding="utf-8").splitlines()
    named = {(row["line"], row["what"]) for row in map(json.loads, noted)}
    assert {(2, CUT), (3, CUT_AWAY), (4, UNANSWERED), (5, EMPTY), (6, DISORDER)} <= named
    lengths = dataset.train.lengths()
    assert len(lengths) == 4
    assert lengths.max() == 64
    for number in range(len(dataset.train)):
        assert all(item.mask.any() for item in dataset.train.bundle(number))


def test_pairs_share_a_prompt_that_is_not_learned(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"chosen": turns("p", "a", "q", "good"), "rejected": turns("p", "a", "q", "bad")},
        {"prompt": "p", "chosen": "good", "rejected": "bad " * 60},
    ]
    dataset = prepared(tmp_path, rows, "pairs", seq_len=128, val_fraction=0.0)
    assert said(dataset, dataset.train) == ["good<|im_end|>", "bad<|im_end|>"] * 2
    assert dataset.description["noted"] == {TOO_LONG: 1}
    chosen, rejected = dataset.train.bundle(0)
    first = int(chosen.mask.argmax())
    assert np.array_equal(chosen.ids[:first], rejected.ids[:first])
    assert len(PackedStream(dataset.train, 128, 2, 1).packed) >= 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "good"}, "no key 'rejected'"),
        ({"prompt": "p", "chosen": "good", "rejected": ""}, "'rejected' is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"chosen": "a", "rejected": "b"}, "there is no 'prompt'"),
        ({"chosen": turns("p", "a"), "rejected": turns("p")}, "no answer of its own"),
    ],
)
def test_a_malformed_pair_is_named(row: dict, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        pair_of(row)


def test_labelled_completions_have_a_column(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": f"c{n}", "label": n % 2 == 0} for n in range(6)]
    dataset = prepared(tmp_path, rows, "labelled", val_fraction=0.0)
    for number in range(6):
        (item,) = dataset.train.bundle(number)
        assert (item.columns["label"] == (number % 2 == 0)).all()


def test_the_cache_knows_contents_and_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": turns("a", "b")}] * 3)
    config = DataConfig(path=(str(path),))

    def folder(seq_len: int = 64, **changes: object) -> Path:
        changed = replace(config, **changes)
        return prepare_sequences(changed, learned(tmp_path), tmp_path / "cache", "chats", seq_len)

    first = folder()
    assert folder() == first
    assert len({first, folder(32), folder(val_fraction=0.5), folder(skip_bad=True)}) == 4


def test_padding_of_gsm8k_is_under_three_percent(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "gsm8k_test.chat.jsonl.zst"
    tokenizer = TokenizerConfig(kind="folder", path=str(shared_data / "tokenizers" / "minimind-3"))
    config = DataConfig(path=(str(path),))
    dataset = open_sequences(prepare_sequences(config, tokenizer, tmp_path, "chats", 512))
    assert PackedStream(dataset.train, 512, 8, 1).padding < 0.03


def test_a_deal_gives_every_source_its_share() -> None:
    deal = Deal([0.25, 0.75])
    sources, own = deal.of(np.arange(40))
    assert (sources == 0).sum() == 10
    assert own[sources == 0].tolist() == list(range(10))
    assert deal.before(40).tolist() == [10, 30]
