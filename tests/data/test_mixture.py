"""Several sources in one stream: exact shares, and a function of the step as any stream is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparrowlm.config import MixConfig, TokenizerConfig
from sparrowlm.config.schema import CleanConfig, DataConfig
from sparrowlm.data import sources
from sparrowlm.data.mixed import LONGEST_CYCLE, MixedStream, cycle_of, whole_weights
from sparrowlm.data.mixture import contaminations, join, left_out, named_mix, prepare_mix
from sparrowlm.data.shards import Tokens, open_dataset
from sparrowlm.data.streams import TokenStream
from sparrowlm.errors import ConfigError, TokenizerError

SMALL = TokenizerConfig(kind="bpe", vocab_size=280)
NAMES = ("notes", "mixture", "imported from")


@pytest.fixture
def streams(tmp_path: Path) -> list[TokenStream]:
    """Three sources whose ids lie in ranges of their own, 1,000 apart."""
    found = []
    for number, length in enumerate((900, 333, 500)):
        path = tmp_path / f"{number}.bin"
        np.arange(1000 * number, 1000 * number + length, dtype="<u2").tofile(path)
        found.append(TokenStream(Tokens([path], "uint16", 1 << 16), 16, 8, seed=number))
    return found


def mixed(streams: list[TokenStream], rows: int = 8) -> MixedStream:
    return MixedStream(streams, [0.6, 0.3, 0.1], rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_every_prefix_of_a_cycle_has_its_shares_to_within_a_row(counts: list[int]) -> None:
    order = cycle_of(counts)
    met = np.cumsum(np.eye(len(counts))[order], axis=0)
    due = np.arange(1, len(order) + 1)[:, None] * np.array(counts) / sum(counts)
    assert np.abs(met - due).max() < 1
    assert met[-1].tolist() == counts


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("first", [0, 1, 13])
def test_shares_over_any_window_of_steps(
    streams: list[TokenStream], first: int, steps: int
) -> None:
    """Within one row from the start on, and so within two between any two steps."""
    stream = mixed(streams)
    rows = torch.cat([stream.batch(step).tokens[:, 0] for step in range(first, first + steps)])
    found = np.bincount((rows // 1000).numpy(), minlength=3)
    due = np.array([0.6, 0.3, 0.1]) * len(rows)
    assert (np.abs(found - due) < (1 if first == 0 else 2)).all()


def test_tokens_of_each_source_are_those_of_the_batches(streams: list[TokenStream]) -> None:
    stream = mixed(streams)
    counts = np.zeros(3, dtype=int)
    for step in range(40):
        assert stream.tokens(step) == (counts * 16).tolist()
        counts += np.bincount((stream.batch(step).tokens[:, 0] // 1000).numpy(), minlength=3)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_ranks_together_give_the_same_global_batch(
    streams: list[TokenStream], world_size: int
) -> None:
    stream = mixed(streams)
    for step in (0, 5, 31):
        whole = stream.batch(step)
        parts = [stream.batch(step, rank, world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_a_batch_is_a_function_of_its_step(streams: list[TokenStream]) -> None:
    straight = [mixed(streams).batch(step).tokens for step in range(30)]
    again = mixed(streams)
    for step in (29, 3, 17):
        assert torch.equal(again.batch(step).tokens, straight[step])


def test_every_source_goes_through_its_own_epochs_in_its_own_order(
    streams: list[TokenStream],
) -> None:
    stream = mixed(streams)
    rows = torch.cat([stream.batch(step).tokens for step in range(80)])
    for number, alone in enumerate(streams):
        own = rows[rows[:, 0] // 1000 == number]
        assert len(own) > alone.rows_per_epoch
        expected = alone.read(np.arange(len(own)))[:, :-1]
        assert torch.equal(own, torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("weights", "whole"),
    [([0.7, 0.3], [7, 3]), ([2.0, 1.0, 1.0], [2, 1, 1]), ([5.0], [1]), ([0.5, 0.25], [2, 1])],
)
def test_weights_become_whole_numbers(weights: list[float], whole: list[int]) -> None:
    assert whole_weights(weights) == whole


def test_weights_without_a_short_ratio_are_rounded() -> None:
    weights = [0.123456789, 0.5, 0.3]
    found = np.array(whole_weights(weights))
    assert found.sum() == LONGEST_CYCLE
    assert np.abs(found / found.sum() - np.array(weights) / sum(weights)).max() < 1 / LONGEST_CYCLE


def write_rows(path: Path, word: str, count: int = 300, key: str = "text") -> Path:
    rows = ({key: f"{word} {number}: {word} and {word} again"} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mix_of(tmp_path: Path) -> DataConfig:
    return DataConfig(
        workers=1,
        mix=(
            MixConfig((str(write_rows(tmp_path / "moon.jsonl", "moon")),), 0.75),
            MixConfig((str(write_rows(tmp_path / "b.jsonl", "bird", key="t")),), 0.25, "b", "t"),
        ),
    )


def test_sources_are_prepared_with_one_vocabulary(tmp_path: Path) -> None:
    config = mix_of(tmp_path)
    folders = prepare_mix(config, SMALL, tmp_path / "cache")
    mixture = join(named_mix(config), [open_dataset(folder) for folder in folders])
    assert [part.name for part in mixture.parts] == ["moon", "b"]
    assert mixture.tokenizer is not None
    pieces = [mixture.tokenizer.token_bytes(token) for token in range(mixture.vocab_size)]
    assert any(b"moon" in piece for piece in pieces)  # learned from both
    assert any(b"bird" in piece for piece in pieces)
    own = [part.dataset for part in mixture.parts]
    assert len(mixture.train) == sum(len(dataset.train) for dataset in own)
    assert mixture.train_bytes() == b"".join(dataset.train_bytes() or b"" for dataset in own)
    assert prepare_mix(config, SMALL, tmp_path / "cache") == folders
    # One that is prepared already gives its vocabulary to the others.
    ready = replace(config.mix[0], path=(str(folders[0]),))
    again = replace(config, mix=(ready, config.mix[1]))
    assert prepare_mix(again, TokenizerConfig(kind="bytes"), tmp_path / "c2")[0] == folders[0]
    found = [open_dataset(f) for f in prepare_mix(again, SMALL, tmp_path / "c2")]
    assert join(again.mix, found).vocab_size == mixture.vocab_size


def test_a_prepared_source_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = mix_of(tmp_path)
    folders = prepare_mix(config, SMALL, tmp_path / "cache")
    for home in ("HOME", "USERPROFILE"):  # the second on Windows
        monkeypatch.setenv(home, str(tmp_path))
    ready = replace(config.mix[0], path=(f"~/{folders[0].relative_to(tmp_path)}",))
    again = replace(config, mix=(ready, config.mix[1]))
    assert prepare_mix(again, TokenizerConfig(kind="bytes"), tmp_path / "c2")[0] == folders[0]


def test_the_vocabulary_is_learned_through_the_mirror_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mix_of(tmp_path)
    asked: list[str] = []

    def fetch(address: str, mirror: str, _: object) -> list[Path]:
        asked.append(mirror)
        return [tmp_path / address.removeprefix("hf:owner/")]

    monkeypatch.setattr(sources, "fetch", fetch)
    away = replace(config.mix[0], path=("hf:owner/moon.jsonl",))
    config = replace(config, mix=(away, config.mix[1]), mirror="https://mirror.example")
    prepare_mix(config, SMALL, tmp_path / "cache")
    assert set(asked) == {"https://mirror.example"}


def test_text_that_one_source_holds_out_and_another_trains_on_is_named(tmp_path: Path) -> None:
    config = mix_of(tmp_path)
    other = json.dumps({"t": "moon 5: moon and moon again"}) + "\n"
    held = tmp_path / "moon.jsonl"
    (tmp_path / "b.jsonl").write_text(other * 2 + held.read_text().replace("text", "t"))
    # By hash of the text the same documents are held out of both; by position they are not.
    config = replace(config, split="tail")
    (tmp_path / "b.jsonl").write_text(
        (tmp_path / "b.jsonl").read_text() + other.replace("moon", "bird") * 300
    )
    folders = prepare_mix(config, TokenizerConfig(kind="bytes"), tmp_path / "cache")
    mixture = join(named_mix(config), [open_dataset(folder) for folder in folders])
    (note,) = [note for note in contaminations(mixture) if "of moon are" in note]
    assert note.startswith("contaminated: 30 of 30 held-out documents of moon are trained on in b")


def test_a_source_may_be_called_as_a_part_of_the_description(tmp_path: Path) -> None:
    rows = [MixConfig((str(write_rows(tmp_path / f"{name}.jsonl", name)),)) for name in NAMES]
    config = DataConfig(workers=1, mix=tuple(rows))
    folders = prepare_mix(config, TokenizerConfig(kind="bytes"), tmp_path / "cache")
    datasets = [open_dataset(folder) for folder in folders]
    facts = join(named_mix(config), datasets).description
    assert facts["mixture"] == {
        name: dataset.description for name, dataset in zip(NAMES, datasets, strict=True)
    }
    assert facts["notes"] == []


def test_what_was_left_out_is_told_of_each_source(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = write_rows(folder / "a.jsonl", "moon", 20).read_text()
    (folder / "a.jsonl").write_text(rows + rows + '{"other": 1}\n')
    (folder / ".hidden").write_text("x")
    whole = MixConfig((str(write_rows(tmp_path / "b.jsonl", "bird")),))
    config = DataConfig(
        workers=1, skip_bad=True, clean=CleanConfig(dedup="exact"),
        mix=(MixConfig((str(folder),)), whole),
    )  # fmt: skip
    folders = prepare_mix(config, TokenizerConfig(kind="bytes"), tmp_path / "cache")
    mixture = join(named_mix(config), [open_dataset(folder) for folder in folders])
    assert left_out(mixture) == [
        "rows: passed over: 1 hidden",
        f"rows: 1 of 41 rows rejected: {folders[0] / 'rejected.jsonl'}",
        f"rows: 20 of 41 documents removed (20 exact copy): {folders[0] / 'removed.jsonl'}",
    ]
    assert all((folders[0] / name).is_file() for name in ("rejected.jsonl", "removed.jsonl"))


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    config = mix_of(tmp_path)
    one, other = (
        open_dataset(prepare_mix(config, kind, tmp_path / "cache")[0])
        for kind in (SMALL, TokenizerConfig(kind="bytes"))
    )
    with pytest.raises(TokenizerError, match="'b' was made with another tokenizer than 'moon'"):
        join(named_mix(config), [one, other])


def test_faults_of_a_mixture_are_told_together() -> None:
    config = DataConfig(
        path=("x",), mix=(MixConfig(("a/b.txt",), 0), MixConfig(("b.jsonl.zst",)), MixConfig())
    )
    with pytest.raises(ConfigError) as caught:
        named_mix(config)
    told = str(caught.value)
    assert "data.path and data.mix are both given" in told
    assert "data.mix[0].weight is 0, and must be above zero" in told
    assert "data.mix[1].name is 'b' as of another source: set another" in told
    assert "data.mix[2].path is empty" in told


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/books.jsonl.zst", "books"),
        ("link", "link"),
        ("hf:owner/name", "name"),
        (".", "here"),
        ("..", "above"),
        ("../here/", "here"),
        ("../here/..", "above"),
        (".notes/", "notes"),
    ],
)
def test_every_source_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    """Without one its held-out loss would stand in the log as that of the whole mixture."""
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    (here / "link").symlink_to(tmp_path)
    monkeypatch.chdir(here)
    assert [entry.name for entry in named_mix(DataConfig(mix=(MixConfig((path,)),)))] == [name]


def test_a_path_that_gives_no_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mix\[0\]\.path '/' gives no name: set data\.mix\[0\]"):
        named_mix(DataConfig(mix=(MixConfig(("/",)),)))
