"""Decoding steps as CUDA graphs.

A step of a small model is some 300 kernels of a few microseconds each, and starting them one by
one takes the host longer than the GPU needs for them. A graph is recorded once and started
whole. What it was recorded with is fixed: the number of rows, the span of keys, and the addresses
of everything it reads, which is why its inputs are copied into tensors of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparrowlm.infer.decoder import Decoder
from sparrowlm.model.cache import KVCache, Window


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    tokens: Tensor  # (B, 1)
    window: Window
    logits: Tensor  # (B, V)


class Graphs:
    """Passes of one token for every slot of a cache, recorded when a span is first asked for.

    Args:
        decoder: on a CUDA device, not compiled.
        cache: whose memory the graphs read and write.
    """

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache
        self._recorded: dict[int, _Recorded] = {}

    def __call__(self, tokens: Tensor, window: Window) -> Tensor:
        """Logits (B, V) of tokens (B, 1), overwritten by the next call.

        Args:
            tokens: one for every slot, idle ones too.
            window: of the cache, with a mask and no common start.
        """
        recorded = self._recorded.get(window.span)
        if recorded is None:
            recorded = self._recorded[window.span] = self._record(tokens, window)
        assert window.mask is not None
        assert recorded.window.mask is not None
        recorded.tokens.copy_(tokens)
        recorded.window.positions.copy_(window.positions)
        recorded.window.mask.copy_(window.mask)
        recorded.graph.replay()
        return recorded.logits

    def _record(self, tokens: Tensor, window: Window) -> _Recorded:
        assert window.mask is not None
        assert window.start is None
        tokens = tokens.clone()
        window = window._replace(positions=window.positions.clone(), mask=window.mask.clone())
        side = torch.cuda.Stream()  # libraries set themselves up on their first call, unrecorded
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._decoder.step(tokens, self._cache, window)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._decoder.step(tokens, self._cache, window)
        return _Recorded(graph, tokens, window, logits)
