"""KTO's reference point: one number for the whole step, before its first micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sparrowlm.batch import Batch
from sparrowlm.data.packing import best_fit, packed_batch
from sparrowlm.data.sequences import PackedStream, Sequences
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.sequences import completion_lengths, over, segment_sums, target_logprobs
from sparrowlm.runtime import Runtime, all_sum


class WithReferencePoint:
    """A stream whose batches carry the reference point in a column.

    It is a function of the step and of the weights before it, the same for every cut into
    micro-batches and ranks: each rank measures the mismatched completions of its own bundles, and
    the sums are added up.

    Args:
        stream: of the completions, or pairs.
        mismatched: of the same split, a sequence for each bundle, with the reference's
            log-probabilities in column "reference_logprob".
        model: the policy, on its device.
        runtime: where.
        rows: rows of a forward pass.
    """

    def __init__(
        self,
        stream: PackedStream,
        mismatched: Sequences,
        model: Transformer,
        runtime: Runtime,
        rows: int,
    ) -> None:
        self.stream, self.mismatched, self.model = stream, mismatched, model
        self.runtime, self.rows = runtime, rows
        self.rows_per_epoch = stream.rows_per_epoch

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of one rank in one step; see `PackedStream.batch`."""
        rows = self.stream.bundles(step, rank, world_size)
        pair = shift(self.model, self._batches([one for row in rows for one in row]), self.runtime)
        return with_point(self.stream.batch(step, rank, world_size), all_sum(pair))

    def _batches(self, bundles: list[int]) -> Iterator[Batch]:
        """The mismatched completions of some bundles, packed."""
        found = [self.mismatched.bundle(one) for one in bundles]
        packed = best_fit([len(item.ids) - 1 for (item,) in found], self.stream.seq_len)
        for first in range(0, len(packed), self.rows):
            rows = [[found[one] for one in row] for row in packed[first : first + self.rows]]
            yield packed_batch(rows, self.stream.seq_len)


@torch.no_grad()
def shift(model: Transformer, batches: Iterable[Batch], runtime: Runtime) -> Tensor:
    """(2,) float64 (float32 on MPS), on the device: the sum of completions' log-ratios, policy to
    reference, and how many there are. Dropout is off meanwhile."""
    wide = torch.float32 if runtime.device.type == "mps" else torch.float64
    total = torch.zeros(2, dtype=wide, device=runtime.device)
    was_training = model.training
    model.eval()
    try:
        with runtime.autocast():
            for batch in batches:
                here = batch.to(runtime.device)
                logprob = target_logprobs(model, model(here.tokens, here.segments).hidden, here)
                ratio = logprob - here.columns["reference_logprob"] * here.mask
                sums = segment_sums(ratio, here.segments)
                total += over(sums, completion_lengths(here) > 0)
    finally:
        model.train(was_training)
    return total


def with_point(batch: Batch, pair: Tensor) -> Batch:
    """The batch with a column "reference_point" (B, T): the mean of `shift`, at least 0."""
    point = (pair[0] / pair[1].clamp(min=1)).clamp(min=0)
    column = torch.full(batch.tokens.shape, point.item(), dtype=torch.float64)
    if pair.dtype == torch.float32:
        column = column.float()
    return batch._replace(columns={**batch.columns, "reference_point": column})
