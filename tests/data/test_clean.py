"""What is removed, and that nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from sparrowlm.config import CleanConfig, TokenizerConfig
from sparrowlm.config.schema import DataConfig
from sparrowlm.data import likeness, reader
from sparrowlm.data.language import languages_of
from sparrowlm.data.likeness import (
    BINS,
    agreement,
    band_keys,
    jaccard,
    meeting,
    meetings,
    rows_of_band,
    signatures,
)
from sparrowlm.data.prepare import Summary, prepare, prepare_cached
from sparrowlm.data.shards import open_dataset
from sparrowlm.errors import ConfigError
from sparrowlm.text import documents
from sparrowlm.text.tokenizer import byte_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz   "
HAN = "".join(chr(number) for number in range(0x4E00, 0x4E00 + 800))


def text_of(length: int, seed: int, alphabet: str = LETTERS) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


def edited(text: str, changes: int, seed: int) -> str:
    chosen, found = random.Random(seed), list(text)
    for _ in range(changes):
        found[chosen.randrange(len(found))] = "#"
    return "".join(found)


def pairs_of(length: int, changes: int, count: int, alphabet: str) -> tuple[list[str], list[str]]:
    ours = [text_of(length, seed, alphabet) for seed in range(count)]
    return ours, [edited(text, changes, seed) for seed, text in enumerate(ours)]


@pytest.mark.parametrize("alphabet", [LETTERS, HAN], ids=["letters", "han"])
@pytest.mark.parametrize(("length", "changes"), [(60, 1), (300, 6), (2000, 20), (2000, 120)])
def test_agreement_estimates_jaccard(length: int, changes: int, alphabet: str) -> None:
    """Without bias, and with no larger deviation than is promised."""
    ours, theirs = pairs_of(length, changes, 80, alphabet)
    true = np.array([jaccard(one, other) for one, other in zip(ours, theirs, strict=True)])
    error = agreement(signatures(ours), signatures(theirs)) - true
    deviation = np.sqrt((true * (1 - true)).mean() / BINS)
    assert abs(error.mean()) < 4 * deviation / np.sqrt(len(true))
    assert error.std() < 1.3 * deviation


@pytest.mark.parametrize("alphabet", [LETTERS, HAN], ids=["letters", "han"])
@pytest.mark.parametrize(("length", "changes"), [(120, 1), (400, 4), (2000, 20)])
def test_nearly_all_pairs_of_nine_tenths_are_found(
    length: int, changes: int, alphabet: str
) -> None:
    ours, theirs = pairs_of(length, changes, 200, alphabet)
    assert np.mean([jaccard(*pair) for pair in zip(ours, theirs, strict=True)]) > 0.9
    one, other = signatures(ours), signatures(theirs)
    rows = rows_of_band(0.8)
    met = (band_keys(one, rows) == band_keys(other, rows)).any(axis=0)
    assert (met & (agreement(one, other) >= 0.8)).mean() > 0.95


@pytest.mark.parametrize("length", [300, 1000])
def test_pairs_meet_as_often_as_the_arithmetic_of_bands_says(length: int) -> None:
    ours, theirs = pairs_of(length, length // 22, 200, LETTERS)
    true = [jaccard(one, other) for one, other in zip(ours, theirs, strict=True)]
    rows = rows_of_band(0.8)
    met = (band_keys(signatures(ours), rows) == band_keys(signatures(theirs), rows)).any(axis=0)
    assert met.mean() == pytest.approx(np.mean([meeting(j, rows) for j in true]), abs=0.08)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_are_as_wide_as_is_sure(threshold: float) -> None:
    rows = rows_of_band(threshold)
    assert meeting(threshold, rows) >= likeness.SURE
    assert rows == 16 or meeting(threshold, rows + 1) < likeness.SURE


def test_signatures_do_not_depend_on_what_stands_beside() -> None:
    texts = ["", "a", "abcd", "Ab  c\nD", text_of(500, 1), "麻雀虽小", text_of(40, 2)]
    together = signatures(texts)
    for text, found in zip(texts, together, strict=True):
        assert np.array_equal(signatures([text])[0], found)
    assert np.array_equal(signatures(["ab c d"]), signatures(["Ab  c\nD"]))
    found = (together != likeness.EMPTY).sum(axis=1)
    assert found[:3].tolist() == [0, 1, 4]


def test_meetings_are_pairs_of_equal_keys() -> None:
    keys = np.array([5, 7, 5, 5, 9, 7, 5], dtype=np.uint64)
    met = {pair for one, other in meetings(keys) for pair in zip(one, other, strict=True)}
    assert met == {(0, 2), (0, 3), (2, 3), (0, 6), (3, 6), (1, 5)}


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def cleaned(folder: Path, path: Path, workers: int = 1, **asked: object) -> tuple[Summary, bytes]:
    """Prepare without a held-out side; the text that is left."""
    config = DataConfig(workers=workers, val_fraction=0.0, clean=CleanConfig(**asked))  # pyright: ignore[reportArgumentType]
    summary = prepare([str(path)], byte_tokenizer(), folder, config)
    return summary, open_dataset(folder).train_bytes() or b""


def removed(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]


def test_exact_copies_go_and_the_first_stays(tmp_path: Path) -> None:
    texts = ["one text", "another", "One  Text\n", "third", "another", "another"]
    path = write_rows(tmp_path / "a.jsonl", texts)
    summary, left = cleaned(tmp_path / "out", path, dedup="exact")
    assert left == b"one textanotherthird"
    assert summary.removed == {"exact copy": 3}
    assert summary.accepted + sum(summary.removed.values()) == len(texts)
    assert [(row["line"], row["like"]) for row in removed(tmp_path / "out")] == [
        (3, f"{path}:1"),
        (5, f"{path}:2"),
        (6, f"{path}:2"),
    ]
    assert summary.examples == {"exact copy": f"{path}:3 like {path}:1"}


@pytest.mark.parametrize("alphabet", [LETTERS, HAN], ids=["letters", "han"])
def test_near_copies_go_and_others_stay(tmp_path: Path, alphabet: str) -> None:
    ours = [text_of(400, seed, alphabet) for seed in range(150)]
    near = [edited(text, 4, seed) for seed, text in enumerate(ours)]
    far = [edited(text, 40, seed) for seed, text in enumerate(ours)]
    assert min(jaccard(*pair) for pair in zip(ours, near, strict=True)) > 0.88
    assert max(jaccard(*pair) for pair in zip(ours, far, strict=True)) < 0.65
    path = write_rows(tmp_path / "a.jsonl", [*ours, *near, *far])
    summary, left = cleaned(tmp_path / "out", path, dedup="near")
    gone = summary.removed["near copy"]
    assert gone >= 0.97 * len(near)  # found by bands and by signatures
    assert gone <= len(near)
    assert all(text.encode() in left for text in (*ours, *far))
    for row in removed(tmp_path / "out"):
        first = int(str(row["like"]).rsplit(":", 1)[1])
        assert jaccard(ours[first - 1], near[int(str(row["line"])) - 151]) > 0.88


def test_the_same_goes_for_any_workers_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [text_of(200, seed) for seed in range(60)]
    texts = [*ours, *(edited(text, 1 + seed % 9, seed) for seed, text in enumerate(ours))]
    path = write_rows(tmp_path / "a.jsonl", texts)
    first, left = cleaned(tmp_path / "one", path, dedup="near")
    monkeypatch.setattr(reader, "LOAD_PIECES", 7)
    for workers in (1, 2):
        again, other = cleaned(tmp_path / f"{workers}", path, workers, dedup="near")
        assert (again.removed, other) == (first.removed, left)
    assert not list(tmp_path.glob("*/clean.*"))


def test_length_is_of_the_whole_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    texts = ["x\n" * 5, "y\n" * 50, "z\n" * 500]
    path.write_text("<|endoftext|>\n".join(texts))
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 32)
    summary, left = cleaned(tmp_path / "out", path, min_chars=20, max_chars=200)
    assert summary.removed == {"too short": 1, "too long": 1}
    assert left.strip() == texts[1].strip().encode()


def test_long_copies_in_pieces_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "".join(f"{text_of(30, seed)}.\n" for seed in range(40))
    for name, text in (("a", line), ("b", line), ("c", edited(line, 9, 1)), ("d", line[::-1])):
        (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 256)
    summary, left = cleaned(tmp_path / "out", tmp_path / "*.txt", dedup="near")
    assert summary.removed == {"exact copy": 1, "near copy": 1}
    assert left == (line + line[::-1]).encode()


def test_everything_that_reads_passes_over_what_goes(tmp_path: Path) -> None:
    """The vocabulary is learned, and the cut by position made, without it."""
    texts = [f"moon {number}" for number in range(200)] + ["zzzzqqqq" * 40] * 30
    path = write_rows(tmp_path / "a.jsonl", texts)
    asked = CleanConfig(max_chars=100)
    config = DataConfig(path=(str(path),), split="tail", clean=asked)
    kind = TokenizerConfig(kind="bpe", vocab_size=280)
    dataset = open_dataset(prepare_cached(config, kind, tmp_path / "cache"))
    assert b"zzqq" not in (dataset.train_bytes() or b"") + (dataset.val_bytes() or b"")
    assert dataset.tokenizer is not None
    pieces = [dataset.tokenizer.token_bytes(token) for token in range(dataset.vocab_size)]
    assert not any(b"zz" in piece for piece in pieces)
    assert dataset.description["removed"] == {"too long": 30}


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "床前明月光，疑是地上霜。举头望明月，低头思故乡。"),
        ("zh", "我们用 Python 和 PyTorch 训练 language model，很简单。"),
        ("ja", "吾輩は猫である。名前はまだ無い。"),
        ("ko", "안녕하세요, 만나서 반갑습니다."),
        ("en", "It was the best of times, it was the worst of times, and he had not a care."),
        ("de", "Es ist nicht leicht, mit dem Hund auf die Straße zu gehen, und sie weiß das auch."),
        (
            "fr",
            "Il est parti avec les enfants pour une promenade dans la ville, et je ne sais pas.",
        ),
        ("es", "El perro que vive en la casa no es de mi hermano, pero su gato es muy listo."),
        ("ru", "Все счастливые семьи похожи друг на друга."),
        ("ar", "كان يا ما كان في قديم الزمان"),
        ("none", "1234 + 5678 = 6912; ---- 99 %%"),
        ("none", ""),
        ("latin", "Xkcd qwrt plmk vbnz."),
    ],
)
def test_languages(language: str, text: str) -> None:
    assert languages_of([text, "other", text]) == [language, "latin", language]


def test_poems_and_the_wizard_are_told_apart(shared_data: Path) -> None:
    import zstandard

    path = shared_data / "tang_poems.jsonl.zst"
    rows = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().splitlines()[:3000]
    assert set(languages_of([json.loads(row)["text"] for row in rows])) == {"zh"}
    wizard = (shared_data / "wizard_of_oz.txt").read_text(encoding="utf-8")
    found = languages_of([wizard[at : at + 500] for at in range(0, len(wizard), 500)])
    assert found.count("en") > 0.98 * len(found)


def test_other_languages_go(tmp_path: Path) -> None:
    texts = ["the cat is in the house", "床前明月光", "Все счастливые семьи", "1 2 3"]
    summary, left = cleaned(
        tmp_path / "out", write_rows(tmp_path / "a.jsonl", texts), languages=("en", "zh")
    )
    assert left.decode() == texts[0] + texts[1]
    assert summary.removed == {"another language": 2}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"languages": ("klingon",)}, "data.clean.languages: 'klingon' is not told apart"),
        ({"near_threshold": 1.5}, "data.clean.near_threshold: is 1.5"),
        ({"min_chars": 10, "max_chars": 5}, "nothing would stay"),
    ],
)
def test_impossible_wishes_are_refused(tmp_path: Path, asked: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        cleaned(tmp_path / "out", write_rows(tmp_path / "a.jsonl", ["text"]), **asked)


def split_in_two(tmp_path: Path, texts: list[str], **settings: object) -> Summary:
    config = DataConfig(workers=1, **settings)  # pyright: ignore[reportArgumentType]
    path = write_rows(tmp_path / "a.jsonl", texts)
    return prepare([str(path)], byte_tokenizer(), tmp_path / "out", config)


def test_held_out_text_that_is_trained_on_is_named(tmp_path: Path) -> None:
    texts = [f"text number {number} of many" for number in range(100)]
    texts[95], texts[97] = texts[3].upper(), texts[4].replace(" ", "\n")
    summary = split_in_two(tmp_path, texts, split="tail")
    (note,) = [note for note in summary.notes if note.startswith("contaminated:")]
    assert "2 of 10 held-out documents are trained on as well" in note
    path = tmp_path / "a.jsonl"
    assert f"{path}:4 and {path}:96; {path}:5 and {path}:98" in note
    assert "--dedup exact" in note
    facts = open_dataset(tmp_path / "out").description["contamination"]
    assert (facts["documents"], facts["held_out"]) == (2, 10)


def test_nothing_is_trained_on_where_there_is_no_text(tmp_path: Path) -> None:
    texts = [f"text number {number} of many" for number in range(100)]
    texts[3], texts[4], texts[95], texts[97] = "", " \n", "", "  "
    summary = split_in_two(tmp_path, texts, split="tail")
    assert not any("contaminated" in note for note in summary.notes)


def test_its_fix_mends_it(tmp_path: Path) -> None:
    texts = [f"text number {number % 50} of many{' ' * number}" for number in range(400)]
    summary = split_in_two(tmp_path, texts)  # by hash of the text, which the spaces change
    assert any("contaminated" in note for note in summary.notes)
    (tmp_path / "b").mkdir()
    mended = split_in_two(tmp_path / "b", texts, clean=CleanConfig(dedup="exact"))
    assert not any("contaminated" in note for note in mended.notes)
    assert mended.accepted == 50


def test_clean_data_is_not_accused(tmp_path: Path) -> None:
    summary = split_in_two(tmp_path, [f"text {number}" for number in range(300)])
    assert not any("contaminated" in note for note in summary.notes)
