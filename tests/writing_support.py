"""What the engine is compared with: random models, passes without a cache, a scripted decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.infer.sampling import Sampling, draw, next_tokens
from sparrowlm.model.cache import KVCache
from sparrowlm.model.transformer import Output, Transformer


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Random weights, with norms and biases away from 1 and 0, in float64."""
    model = Transformer(resolve_model(config)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(around + 0.2 * noise)
    return model.eval()


@torch.no_grad()
def full_logits(model: Transformer, ids: Sequence[int]) -> Tensor:
    """(T, V) of one pass over all of `ids`, without a cache."""
    tokens = torch.tensor([list(ids)], device=model.head_weight.device)
    return model.logits(model(tokens).hidden)[0]


def write_without_cache(
    model: Transformer, prompt: list[int], sampling: Sampling, vocab_size: int, sample: int = 0
) -> list[int]:
    """The tokens of a completion, each from a pass over everything before it. A full context
    goes on with its last half."""
    history, window = list(prompt), list(prompt)
    for position in range(sampling.max_tokens):
        if len(window) > model.config.max_seq_len:
            window = window[-(model.config.max_seq_len // 2) :]
        logits = full_logits(model, window)[-1:, :vocab_size]
        number = draw(sampling.seed, sample, position)
        token = next_tokens(logits, [sampling.filters], [number], [history]).item()
        history.append(int(token))
        window.append(int(token))
    return history[len(prompt) :]


class Script:
    """Stands in for a decoder: slot b answers the n-th position with `tokens[n]`, whatever is
    asked, so that a test decides what is written."""

    def __init__(self, config: ModelConfig, tokens: Sequence[int]) -> None:
        self.config, self.tokens = config, tokens
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def __call__(self, tokens: Tensor, cache: KVCache) -> Output:
        cache.advance(tokens.shape[1])
        chosen = [self.tokens[length - 1] for length in cache.lengths.tolist()]
        return Output(F.one_hot(torch.tensor(chosen)[:, None], self.config.vocab_size).float())

    def logits(self, hidden: Tensor) -> Tensor:
        """The chosen token leads by far."""
        return 50 * hidden
