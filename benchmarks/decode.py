"""Tokens a second of the 26.9M model while it writes, against the memory's bandwidth.

    python benchmarks/decode.py --precision bfloat16

512 wide, 8 layers, 8 heads of 64 with 4 key-value heads, QK-norm, vocabulary 6400, random
weights. One token reads every weight once, so the bandwidth of the memory, measured in the same
run, bounds the speed at batch 1; what is missing to it is the dispatch of small operations. The
clock runs over the whole engine, drawing included (temperature 0.8, top-k 50), from the first
token after the prompt to the last.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.infer.decoder import Decoder
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.product import FEW
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.transformer import Transformer
from sparrowlm.runtime import Runtime, detect, machine, synchronize

SHAPE = ModelConfig(
    vocab_size=6400, d_model=512, n_layers=8, n_heads=8, n_kv_heads=4, max_seq_len=512
)


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description="Tokens a second while the 26.9M model writes.")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="to write after the prompt")
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    parser.add_argument("--precision", default="auto", help="of weights, products and cache")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", default="full", choices=["full", "int8"])
    parser.add_argument("--compile", action="store_true", help="the pass of one token")
    options = parser.parse_args()
    runtime = detect(options.device, options.precision)
    model = Transformer(resolve_model(SHAPE))
    model.init_weights(seed=1337)
    model.to(runtime.device, runtime.weight_dtype)
    engine = Engine(
        model,
        None,
        runtime,
        slots=options.batch,
        compile=options.compile,
        weights=options.weights,
    )
    sampling = Sampling(temperature=0.8, top_k=50, max_tokens=options.tokens)
    prompt = list(range(100, 100 + options.prompt_tokens))
    requests = [Request(prompt, sampling, sample) for sample in range(options.batch)]
    bandwidths = [read_rate(runtime)]
    seconds = []
    for _ in range(options.rounds + 1):
        seconds.append(seconds_per_round(engine, requests, runtime))
        bandwidths.append(read_rate(runtime))
    rounds = [options.batch * (options.tokens - 1) / spent for spent in seconds[1:]]
    print(json.dumps(result(options, engine, rounds, max(bandwidths)), ensure_ascii=False))


def seconds_per_round(engine: Engine, requests: list[Request], runtime: Runtime) -> float:
    """From the end of the first round, which reads the prompt, to the end of the last."""
    pieces = engine.stream(requests)
    for _ in requests:
        next(pieces)
    synchronize(runtime.device)
    began = time.perf_counter()
    for _ in pieces:
        pass
    synchronize(runtime.device)
    return time.perf_counter() - began


def read_rate(runtime: Runtime, size: int = 2**28, repeats: int = 5) -> float:
    """Bytes a second that the device adds up: one pass over memory, past every cache."""
    numbers = torch.ones(size // 4, device=runtime.device)
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        numbers.sum()
        synchronize(runtime.device)
        best = max(best, size / (time.perf_counter() - began))
    return best


def bytes_per_step(decoder: Decoder, batch: int, length: float) -> float:
    """Weights read once, and the keys and values of `batch` sequences of a mean length."""
    config, width = decoder.config, decoder.dtype.itemsize
    weights = decoder.head.size + sum(
        product.size for layer in decoder.layers for product in (layer.qkv, layer.o, *layer.mlp)
    )
    cache = 2 * config.n_layers * config.n_kv_heads * config.head_dim * length * batch
    narrow = decoder.head.whole is not None and batch <= FEW
    return (1 if narrow else width) * weights + width * cache


def result(
    options: argparse.Namespace, engine: Engine, rounds: list[float], bandwidth: float
) -> dict[str, object]:
    """What is printed."""
    length = options.prompt_tokens + options.tokens / 2
    moved = bytes_per_step(engine.decoder, options.batch, length)
    bound = options.batch * bandwidth / moved
    return {
        "benchmark": "decode",
        "tokens_per_second": round(statistics.median(rounds), 1),
        "rounds": [round(value, 1) for value in rounds],
        "batch": options.batch,
        "prompt_tokens": options.prompt_tokens,
        "tokens": options.tokens,
        "precision": str(engine.decoder.dtype).removeprefix("torch."),
        "weights": options.weights,
        "compile": options.compile,
        "bytes_per_step": round(moved),
        "bandwidth_gb_per_second": round(bandwidth / 1e9, 2),
        "bandwidth_bound_tokens_per_second": round(bound, 1),
        "share_of_bound": round(statistics.median(rounds) / bound, 3),
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
