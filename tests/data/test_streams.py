from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparrowlm.batch import Batch
from sparrowlm.data.shards import Tokens
from sparrowlm.data.streams import TokenStream, permute, window_count, windows
from sparrowlm.errors import DataError

EOT = 0


def tokens_of(folder: Path, ids: np.ndarray, shards: int = 1) -> Tokens:
    paths = []
    for number, part in enumerate(np.array_split(ids, shards)):
        paths.append(folder / f"{number}.bin")
        part.astype("<u2").tofile(paths[-1])
    return Tokens(paths, "uint16", 1 << 16)


@pytest.fixture
def counting(tmp_path: Path) -> Tokens:
    """Token i at position i, so that a row shows where it starts."""
    return tokens_of(tmp_path, np.arange(1000), shards=3)


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip(one[:3], other[:3], strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_a_batch_is_a_function_of_its_step(counting: Tokens) -> None:
    stream = TokenStream(counting, seq_len=16, rows=8, seed=3)
    again = TokenStream(counting, seq_len=16, rows=8, seed=3)
    straight = [stream.batch(step) for step in range(30)]
    for step in (29, 3, 17, 3):
        assert equal(again.batch(step), straight[step])
    assert not equal(TokenStream(counting, 16, 8, seed=4).batch(0), straight[0])


def test_rows_are_what_the_files_hold_and_targets_follow(counting: Tokens) -> None:
    batch = TokenStream(counting, seq_len=16, rows=8, seed=3).batch(0)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.shape == (8, 16)
    assert batch.segments is None
    assert batch.mask.all()
    assert torch.equal(batch.targets, batch.tokens + 1)


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_visits_every_row_exactly_once(counting: Tokens, epoch: int) -> None:
    stream = TokenStream(counting, seq_len=16, rows=1, seed=3)
    count = stream.rows_per_epoch
    assert count == 999 // 16
    rows = [stream.batch(step).tokens[0] for step in range(epoch * count, (epoch + 1) * count)]
    seen = torch.stack(rows)
    starts = sorted(seen[:, 0].tolist())
    assert len(set(starts)) == count
    gaps = np.diff([*starts, starts[0] + 1000])
    assert (gaps[:-1] >= 16).all()  # no two rows overlap
    assert seen.unique().numel() == count * 16
    if epoch == 0:
        assert starts == list(range(0, count * 16, 16))


def test_epochs_differ_in_order_and_in_where_rows_start(counting: Tokens) -> None:
    stream = TokenStream(counting, seq_len=16, rows=62, seed=3)
    firsts = [stream.batch(epoch).tokens[:, 0].tolist() for epoch in range(4)]
    assert len({tuple(first) for first in firsts}) == 4
    assert len({min(first) % 16 for first in firsts}) > 1


def test_the_first_token_follows_the_last(counting: Tokens) -> None:
    crossing = 0
    stream = TokenStream(counting, seq_len=16, rows=62, seed=1)
    for step in range(40):
        batch = stream.batch(step)
        assert torch.equal(batch.targets, (batch.tokens + 1) % 1000)
        crossing += int((batch.tokens[:, 0] > batch.targets[:, -1]).sum())
    assert crossing > 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 5])
def test_ranks_together_give_the_same_global_batch(counting: Tokens, world_size: int) -> None:
    stream = TokenStream(counting, seq_len=16, rows=8, seed=3)
    for step in (0, 7, 11):
        parts = [stream.batch(step, rank, world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat([p.tokens for p in parts]), stream.batch(step).tokens)
        assert torch.equal(torch.cat([p.targets for p in parts]), stream.batch(step).targets)


def test_a_step_may_span_several_epochs(tmp_path: Path) -> None:
    stream = TokenStream(tokens_of(tmp_path, np.arange(33)), seq_len=16, rows=7, seed=3)
    assert stream.rows_per_epoch == 2
    assert stream.batch(0).tokens.shape == (7, 16)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_permute_is_a_permutation_of_any_size(size: int) -> None:
    rows = np.arange(size)
    assert sorted(permute(rows, size, seed=7).tolist()) == rows.tolist()


def test_permute_never_changes() -> None:
    """The data order of every run that was ever started depends on these figures."""
    assert permute(np.arange(12), 12, seed=5).tolist() == [3, 1, 2, 8, 7, 4, 11, 6, 9, 0, 5, 10]


def test_permute_leaves_no_pattern() -> None:
    order = permute(np.arange(10_000), 10_000, seed=11)
    neighbors = np.corrcoef(order[:-1], order[1:])[0, 1]
    places = np.corrcoef(np.arange(10_000), order)[0, 1]
    assert abs(neighbors) < 0.05
    assert abs(places) < 0.05


def test_segments_start_at_end_of_text(tmp_path: Path) -> None:
    ids = np.array([5, 6, EOT, 7, 8, 9, EOT, 4, 3, 2, 1, 1, 1])
    batch = TokenStream(
        tokens_of(tmp_path, ids), seq_len=12, rows=1, seed=1, eot_id=EOT, document_mask=True
    ).batch(0)
    assert batch.segments is not None
    assert batch.segments.dtype == torch.int32
    assert batch.segments[0].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert batch.mask.all()


def test_packed_documents_are_the_documents_alone(tmp_path: Path) -> None:
    """Cut at its segments, a packed row is [EOT, t0 … tn] predicting [t0 … tn, EOT] of each."""
    documents = [[5, 6, 7], [8], [9, 10, 11, 12]]
    ids = np.array([EOT, *(token for text in documents for token in (*text, EOT))])
    batch = next(windows(tokens_of(tmp_path, ids), 32, 4, eot_id=EOT, document_mask=True))
    assert batch.segments is not None
    assert batch.segments[0, int(batch.mask.sum()) :].eq(-1).all()
    for number, text in enumerate(documents):
        chosen = (batch.segments[0] == number) & batch.mask[0]
        assert batch.tokens[0, chosen].tolist() == [EOT, *text]
        assert batch.targets[0, chosen].tolist() == [*text, EOT]


@pytest.mark.parametrize(
    ("length", "seq_len", "rows"),
    [(1000, 16, 8), (2, 16, 8), (17, 16, 8), (18, 16, 8), (129, 8, 4)],
)
def test_windows_make_every_token_but_the_first_a_target_once(
    tmp_path: Path, length: int, seq_len: int, rows: int
) -> None:
    tokens = tokens_of(tmp_path, np.arange(length))
    batches = list(windows(tokens, seq_len, rows))
    counted = torch.cat([batch.targets[batch.mask] for batch in batches])
    assert counted.tolist() == list(range(1, length))
    assert len({batch.tokens.shape for batch in batches}) == 1
    for batch in batches:
        assert torch.equal(batch.targets[batch.mask], batch.tokens[batch.mask] + 1)


def test_limited_windows_lie_evenly_over_the_split(counting: Tokens) -> None:
    batches = list(windows(counting, 16, 4, limit=10))
    starts = [int(row[0]) for batch in batches for row in batch.tokens if row.any()]
    assert len(starts) == 10 == window_count(counting, 16, 10)
    assert max(np.diff(starts)) - min(np.diff(starts)) <= 16
    assert starts[0] == 0
    assert starts[-1] >= 880
    assert window_count(counting, 16) == window_count(counting, 16, 10_000) == 63


@pytest.mark.parametrize("stride", [1, 5, 16])
@pytest.mark.parametrize("size", [2, 16, 17, 18, 100, 1000])
def test_a_stride_gives_every_target_once_and_context(
    tmp_path: Path, size: int, stride: int
) -> None:
    tokens = tokens_of(tmp_path, np.arange(size))
    batches = list(windows(tokens, seq_len=16, rows=3, stride=stride))
    counted = torch.cat([batch.targets[batch.mask] for batch in batches])
    assert counted.tolist() == list(range(1, size))
    rows = sum(int(batch.mask.any(1).sum()) for batch in batches)
    assert rows == window_count(tokens, 16, stride=stride)
    for batch in batches:
        rows, places = batch.mask.nonzero(as_tuple=True)
        behind_first = batch.tokens[:, 0][rows] > 0
        assert (places[behind_first] >= 16 - stride).all()


def test_too_little_data_is_told(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, np.arange(16))
    with pytest.raises(DataError, match="16 tokens do not fill one row, which takes 17"):
        TokenStream(tokens, seq_len=16, rows=1, seed=1)


def test_a_document_mask_needs_an_end_of_text_token(counting: Tokens) -> None:
    with pytest.raises(DataError, match="document_mask"):
        TokenStream(counting, seq_len=16, rows=1, seed=1, document_mask=True)
