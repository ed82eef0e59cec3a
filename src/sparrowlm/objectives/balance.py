"""The term that keeps experts busy, for any objective."""

from __future__ import annotations

import torch
from torch import Tensor

from sparrowlm.batch import Loss
from sparrowlm.model.moe import Routing


def balanced(loss: Loss, routing: Routing | None, mask: Tensor) -> Loss:
    """A loss, and for each target that counts the penalty of its row's routing.

    A row's penalty depends on that row alone and is weighted by its targets, so the sum is the
    same however a batch is cut; a balance over a micro-batch, as is usual, is not.

    Args:
        loss: of the objective. Its metrics stay as they are: the loss that is shown and compared
            holds no penalty.
        routing: of the model's output; None without experts, and then nothing changes.
        mask: (B, T) bool, the targets that count.

    Returns:
        The loss with metrics "balance", "largest_expert" and "smallest_expert" (see `Routing`),
        each a sum over targets and their number.
    """
    if routing is None:
        return loss
    counts = mask.sum(1).to(loss.total.dtype)  # (B,)
    fields = {
        "balance": routing.balance,
        "largest_expert": routing.largest,
        "smallest_expert": routing.smallest,
    }
    told = {
        name: torch.stack(((counts * field.detach()).sum(), counts.sum()))
        for name, field in fields.items()
    }
    return Loss(loss.total + (counts * routing.penalty).sum(), loss.metrics | told)
