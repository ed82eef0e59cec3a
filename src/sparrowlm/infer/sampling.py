"""Which token comes next: pure functions of logits, settings and one random number per row.

The filters and their order are those of transformers (repetition penalty, temperature, top-k,
top-p, min-p), so a setting means here what it means elsewhere. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparrowlm.errors import ConfigError
from sparrowlm.runtime import derived_seed

NOT_A_NUMBER = -1
"""What `next_tokens` gives for a row whose logits hold NaN or infinity."""

_RANGES: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, 100.0),
    "top_k": (int, 0, 2**31 - 1),
    "top_p": (float, 0.0, 1.0),
    "min_p": (float, 0.0, 1.0),
    "repetition_penalty": (float, 0.01, 100.0),
    "seed": (int, 0, 2**63 - 1),
    "max_tokens": (int, 1, 2**31 - 1),
}


class Filters(NamedTuple):
    """The part of `Sampling` that shapes one distribution; equal ones are computed together."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True)
class Sampling:
    """How a completion is drawn and where it ends. The defaults leave the model's own
    distribution as it is.

    Raises:
        ConfigError: every impossible setting, in one message.

    >>> Sampling(temperature=0.8, top_k=50).filters.top_k
    50
    """

    temperature: float = 1.0  # Divides the logits; 0 always takes the likeliest token
    top_k: int = 0  # Keep the k likeliest tokens; 0: all
    top_p: float = 1.0  # Keep the fewest tokens that together hold this probability
    min_p: float = 0.0  # Drop tokens below this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # Above 1: tokens that occurred before become less likely
    seed: int = 1337  # Of the draws
    max_tokens: int = 256  # Longest completion
    stop: tuple[str, ...] = ()  # Strings that end a completion and are no part of it

    def __post_init__(self) -> None:
        faults = [_fault(name, getattr(self, name), *_RANGES[name]) for name in _RANGES]
        if any(not isinstance(text, str) or not text for text in self.stop):
            faults.append("stop holds an empty string, which would end every completion at once")
        if any(faults):
            raise ConfigError("; ".join(filter(None, faults)))

    @property
    def filters(self) -> Filters:
        """What `next_tokens` needs to know."""
        return Filters(*(getattr(self, name) for name in Filters._fields))


def _fault(name: str, value: object, kind: type, least: float, most: float) -> str:
    """What is wrong with a setting, or nothing."""
    if not isinstance(value, int | float if kind is float else int) or isinstance(value, bool):
        return f"{name} is {value!r}, and must be a {'whole ' if kind is int else ''}number"
    # NaN compares false, and so is out of range as well.
    return "" if least <= value <= most else f"{name} is {value}, and must be {least} to {most}"


def draw(seed: int, sample: int, position: int) -> float:
    """A uniform number in [0, 1) for one token, a pure function of where the token stands.

    With no generator to carry along, a row's tokens depend neither on the rows around it nor on
    when it was interrupted. 24 bits, which float32 holds exactly.

    Args:
        seed: of the request.
        sample: which of its completions.
        position: how many tokens of the completion came before.
    """
    return (derived_seed(seed, sample, position) >> 39) * 2.0**-24


def next_tokens(
    logits: Tensor,
    filters: Sequence[Filters],
    draws: Sequence[float],
    history: Sequence[Sequence[int]],
) -> Tensor:
    """One token for every row.

    Args:
        logits: (B, V) float.
        filters: B settings.
        draws: B numbers in [0, 1), as from `draw`.
        history: B lists of the ids so far, prompt included; read where a penalty is set.

    Returns:
        (B,) int64 on the device of the logits; NOT_A_NUMBER where a row's logits are not finite
        at their top.

    >>> tall = torch.tensor([[0.0, 1.0, 5.0, 2.0]])
    >>> int(next_tokens(tall, [Sampling(temperature=0.0).filters], [0.5], [[]]))
    2
    """
    groups: dict[Filters, list[int]] = defaultdict(list)
    for row, setting in enumerate(filters):
        groups[setting].append(row)
    if len(groups) == 1:
        return _group(logits.float(), filters[0], draws, history)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for setting, rows in groups.items():
        mine = [draws[row] for row in rows], [history[row] for row in rows]
        tokens[rows] = _group(logits[rows].float(), setting, *mine)
    return tokens


def _group(
    logits: Tensor, setting: Filters, draws: Sequence[float], history: Sequence[Sequence[int]]
) -> Tensor:
    """`next_tokens` for rows that share their settings."""
    if setting.repetition_penalty != 1:
        logits = penalize(logits, history, setting.repetition_penalty)
    best, tokens = logits.max(-1)
    if setting.temperature > 0:
        tokens = _pick(*candidates(logits, setting), draws)
    return tokens.where(best.isfinite(), NOT_A_NUMBER)


def penalize(logits: Tensor, history: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """(B, V) logits with those of every id in its row's history divided by `penalty` where they
    are positive and multiplied by it where they are negative (Keskar et al. 2019)."""
    changed = logits.clone()
    for row, ids in enumerate(history):
        seen = torch.tensor(sorted(set(ids)), dtype=torch.int64, device=logits.device)
        score = changed[row, seen]
        changed[row, seen] = torch.where(score < 0, score * penalty, score / penalty)
    return changed


def candidates(logits: Tensor, setting: Filters) -> tuple[Tensor, Tensor]:
    """What may be drawn, and how likely it is.

    Args:
        logits: (B, V) float32.
        setting: a temperature above 0.

    Returns:
        ids (B, C) int64 and probabilities (B, C), which sum to 1 and are 0 where top-p or min-p
        took a token out. C is top_k, or V without it.
    """
    size = logits.shape[-1]
    if setting.top_k or setting.top_p < 1:
        logits, ids = logits.topk(min(setting.top_k or size, size))
    else:  # nothing needs an order, and sorting 6,400 logits would take 0.7 ms
        ids = torch.arange(size, device=logits.device).expand_as(logits)
    # Below 1e-6 the likeliest token is alone anyway, and the quotient could overflow.
    probabilities = (logits / max(setting.temperature, 1e-6)).softmax(-1)
    if setting.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        keep = before < setting.top_p
        keep[:, 0] = True
        probabilities = probabilities * keep
    if setting.min_p > 0:
        least = setting.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities * (probabilities >= least)
    if setting.top_p < 1 or setting.min_p > 0:
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return ids, probabilities


def _pick(ids: Tensor, probabilities: Tensor, draws: Sequence[float]) -> Tensor:
    """(B,) the ids at which the cumulated probability passes each draw."""
    # A parallel sum need not rise evenly: only where there is probability may a draw land, and
    # the draw is a share of the greatest sum reached there, so that it always lands.
    cumulated = probabilities.cumsum(-1) * (probabilities > 0)
    target = torch.tensor(draws, device=ids.device)[:, None] * cumulated.amax(-1, keepdim=True)
    place = (cumulated > target).int().argmax(-1, keepdim=True)  # the first
    return ids.gather(-1, place)[:, 0]


def log_probabilities(
    logits: Tensor, tokens: Sequence[int], wanted: Sequence[int | None]
) -> list[tuple[float | None, tuple[tuple[int, float], ...]]]:
    """What the model itself says of the tokens that were drawn, in nats.

    Args:
        logits: (B, V).
        tokens: B ids.
        wanted: B numbers of likeliest tokens to name too; None where nothing is wanted.

    Returns:
        for each row the log-probability of its token, or None, and (id, log-probability) of the
        likeliest ones, likeliest first.

    >>> log_probabilities(torch.tensor([[0.0, 0.0]]), [1], [0])
    [(-0.6931471824645996, ())]
    """
    found: list[tuple[float | None, tuple[tuple[int, float], ...]]] = [(None, ())] * len(tokens)
    rows = [row for row, count in enumerate(wanted) if count is not None]
    if not rows:
        return found
    nats = logits[rows].float().log_softmax(-1)  # (R, V)
    chosen = torch.tensor([tokens[row] for row in rows], device=logits.device)
    own = nats.gather(-1, chosen[:, None])[:, 0].tolist()
    best, ids = nats.topk(max(wanted[row] or 0 for row in rows))
    for row, mine, *top in zip(rows, own, ids.tolist(), best.tolist(), strict=True):
        found[row] = mine, tuple(zip(*top, strict=True))[: wanted[row]]
    return found
