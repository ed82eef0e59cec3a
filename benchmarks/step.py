"""Training steps a second of the 26.9M model, against what this machine multiplies at.

    python benchmarks/step.py --precision float32 --compile

512 wide, 8 layers, 8 heads of 64 with 4 key-value heads, QK-norm, d_ff 1408, vocabulary 6400,
tied; a whole step of fused AdamW, clipping at 1.0 included, on 8 rows of 512. The tokens are drawn
at random from a fixed seed: the speed of a step does not depend on them, and the loss means
nothing.

The ceiling is the median over square products of 256, 512, 1024 and 2048 in the precision of the
run, each the best of several rounds taken between the steps, so that both see the same machine.
Operations are counted by `model.count`: six for each weight and token, the tied head's too, and
attention's causal half. Freed memory is kept, as the command line keeps it.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from sparrowlm.batch import Batch
from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.model.count import count_parameters, flops_per_token
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.process import keep_memory
from sparrowlm.runtime import Runtime, detect, machine, peak_memory_bytes, synchronize

ROWS, LENGTH = 8, 512
SHAPE = ModelConfig(
    vocab_size=6400,
    d_model=512,
    n_layers=8,
    n_heads=8,
    n_kv_heads=4,
    d_ff=1408,
    max_seq_len=LENGTH,
)
SIZES = (256, 512, 1024, 2048)


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description="Tokens a second of a training step.")
    parser.add_argument("--compile", action="store_true", help="torch.compile the whole step")
    parser.add_argument("--precision", default="auto", help="of products")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20, help="at most, after two that warm up")
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, of measured steps")
    options = parser.parse_args()
    keep_memory()
    runtime = detect(options.device, options.precision)
    step = make_step(runtime, options.compile)
    began = time.perf_counter()
    seconds_of(step, runtime)
    first = time.perf_counter() - began
    seconds_of(step, runtime)
    times: list[float] = []
    rates: dict[int, float] = dict.fromkeys(SIZES, 0.0)
    while len(times) < max(1, options.steps) and sum(times) < options.seconds:
        raise_rates(rates, runtime)
        times.append(seconds_of(step, runtime))
    raise_rates(rates, runtime)
    print(json.dumps(result(options, runtime, times, rates, first), ensure_ascii=False))


def make_step(runtime: Runtime, compiled: bool) -> Callable[[], None]:
    """One optimizer step, ready to be called."""
    config = resolve_model(SHAPE)
    model = Transformer(config)
    model.init_weights(seed=1337)
    model.to(runtime.device, runtime.weight_dtype)
    objective = NextToken().to(runtime.device)
    generator = torch.Generator().manual_seed(1337)
    rows = torch.randint(0, config.vocab_size, (ROWS, LENGTH + 1), generator=generator)
    rows = rows.to(runtime.device)
    mask = torch.ones_like(rows[:, 1:], dtype=torch.bool)
    batch = Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), mask, None, {})
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), fused=True)

    def loss_of(batch: Batch) -> torch.Tensor:
        return objective(model, batch).total

    forward = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step() -> None:
        with runtime.autocast():
            total = forward(batch)
        (total / mask.numel()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds_of(work: Callable[[], None], runtime: Runtime) -> float:
    """How long it takes, the device's queue included."""
    synchronize(runtime.device)
    began = time.perf_counter()
    work()
    synchronize(runtime.device)
    return time.perf_counter() - began


def raise_rates(rates: dict[int, float], runtime: Runtime) -> None:
    """Multiply squares of each size again, and keep the best FLOP/s of each."""
    dtype = runtime.autocast_dtype or runtime.weight_dtype
    for size in rates:
        left = torch.randn(size, size, device=runtime.device).to(dtype)
        right = torch.randn(size, size, device=runtime.device).to(dtype)
        times = max(1, (2048 // size) ** 3 // 8)

        def products(left: torch.Tensor = left, right: torch.Tensor = right, n: int = times):
            for _ in range(n):
                torch.mm(left, right)

        products()
        rates[size] = max(rates[size], times * 2 * size**3 / seconds_of(products, runtime))


def result(
    options: argparse.Namespace,
    runtime: Runtime,
    times: list[float],
    rates: dict[int, float],
    first: float,
) -> dict[str, object]:
    """The figures with their conditions."""
    config = resolve_model(SHAPE)
    tokens, typical = ROWS * LENGTH, statistics.median(times)
    ceiling = statistics.median(rates.values())
    achieved = flops_per_token(config, LENGTH) * tokens / typical
    return {
        "benchmark": "step",
        "tokens_per_second": round(tokens / typical),
        "tokens_per_second_best": round(tokens / min(times)),
        "step_seconds": round(typical, 4),
        "first_step_seconds": round(first, 2),
        "steps": len(times),
        "model_flops_per_second": round(achieved),
        "ceiling_flops_per_second": round(ceiling),
        "ceiling_by_size": {str(size): round(rate) for size, rate in rates.items()},
        "mfu": round(achieved / ceiling, 4),
        "parameters": count_parameters(config).total,
        "rows": ROWS,
        "seq_len": LENGTH,
        "precision": runtime.precision,
        "device": str(runtime.device),
        "compiled": options.compile,
        "peak_memory_bytes": peak_memory_bytes(runtime.device),
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
