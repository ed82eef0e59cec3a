"""Many streams at once: tokens a second, time to the first token, time between tokens.

    python benchmarks/serve.py --text FILE --tokenizer DIR --precision bfloat16
    python benchmarks/serve.py … --transformers --minimind PATH

The 26.9M model of `decode.py` with random weights; prompts are pieces of 32 to 192 tokens of a real
text. Every stream sends a request, reads its answer to the end and sends the next, as clients of a
server do; every answer has the same number of tokens, drawn at temperature 0.8 from the 50
likeliest. `transformers` writes with the same weights as Qwen3, and minimind's own `generate`
with the same weights under its own model class; both take the streams of one turn as one batch,
padded on the left, and the next turn when all of it is written. What a stream feels is timed for
all in the same way: from sending to the first token, and from token to token.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from decode import SHAPE

from sparrowlm.config import resolve_model
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.transformer import Transformer
from sparrowlm.runtime import Runtime, detect, machine
from sparrowlm.share.huggingface import LLAMA
from sparrowlm.text.tokenizer import load_tokenizer

SHORTEST, LONGEST = 32, 192
TEMPERATURE, TOP_K = 0.8, 50


class Answer(NamedTuple):
    """When a request was sent, and when each token of its answer came."""

    sent: float
    times: list[float]


Writer = Callable[[list[list[list[int]]], int], list[Answer]]
"""From the prompts of each turn's streams and a number of tokens to answers."""


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description="Many streams at once.")
    parser.add_argument("--text", type=Path, required=True, help="that prompts are pieces of")
    parser.add_argument("--tokenizer", type=Path, required=True, help="of at most 6400 ids")
    parser.add_argument("--streams", default="1,8,32,64", help="at once")
    parser.add_argument("--turns", type=int, default=2, help="requests of each stream")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="the engine's decoding step")
    parser.add_argument("--weights", default="full", choices=["full", "int8"], help="the engine's")
    parser.add_argument("--exact", action="store_true", help="the engine's exact mode")
    parser.add_argument("--transformers", action="store_true", help="measure its generate too")
    parser.add_argument("--minimind", type=Path, help="a checkout whose generate is measured too")
    options = parser.parse_args()
    runtime = detect(options.device, options.precision)
    model = Transformer(resolve_model(SHAPE))
    model.init_weights(seed=1337)
    model.to(runtime.device, runtime.weight_dtype)
    counts = [int(count) for count in options.streams.split(",")]
    turns = prompts(options, max(counts))
    engine = Engine(
        model,
        None,
        runtime,
        slots=max(counts),
        compile=options.compile,
        weights=options.weights,
        exact=options.exact,
    )
    writers: dict[str, Writer] = {"sparrow": ours(engine)}
    if options.transformers:
        writers["transformers"] = batches(qwen3(model, runtime))
    if options.minimind:
        writers["minimind"] = batches(minimind(model, runtime, options.minimind))
    found: dict[str, Any] = {}
    for name, write in writers.items():
        write([turns[0][:2]], 8)  # warms up
        found[name] = {
            str(count): figures(write([turn[:count] for turn in turns], options.tokens))
            for count in counts
        }
    line = {
        "benchmark": "serve",
        "streams": found,
        "turns": options.turns,
        "tokens": options.tokens,
        "prompt_tokens": [SHORTEST, LONGEST],
        "precision": runtime.precision,
        "weights": options.weights,
        "exact": options.exact,
        "compile": options.compile,
        "machine": machine(),
    }
    print(json.dumps(line, ensure_ascii=False))


def prompts(options: argparse.Namespace, streams: int) -> list[list[list[int]]]:
    """For every turn and stream the ids of a piece of the text."""
    tokenizer = load_tokenizer(options.tokenizer)
    ids = tokenizer.encode(options.text.read_text(encoding="utf-8")[:2_000_000])
    generator = torch.Generator().manual_seed(1337)

    def piece() -> list[int]:
        length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
        start = int(torch.randint(len(ids) - length, (), generator=generator))
        return ids[start : start + length]

    return [[piece() for _ in range(streams)] for _ in range(options.turns)]


def figures(answers: list[Answer]) -> dict[str, float]:
    """What is printed of one measurement."""
    began, ended = min(one.sent for one in answers), max(one.times[-1] for one in answers)
    first = sorted(one.times[0] - one.sent for one in answers)
    gaps = [b - a for one in answers for a, b in zip(one.times, one.times[1:], strict=False)]
    cuts = statistics.quantiles(gaps, n=100, method="inclusive")
    return {
        "tokens_per_second": round(sum(len(one.times) for one in answers) / (ended - began), 1),
        "first_token_ms_median": round(1000 * statistics.median(first), 1),
        "first_token_ms_worst": round(1000 * first[-1], 1),
        "between_tokens_ms_p50": round(1000 * cuts[49], 2),
        "between_tokens_ms_p99": round(1000 * cuts[98], 2),
    }


def ours(engine: Engine) -> Writer:
    """A session; each stream sends its next request when it has the last token of one."""

    def write(turns: list[list[list[int]]], tokens: int) -> list[Answer]:
        sampling = Sampling(temperature=TEMPERATURE, top_k=TOP_K, max_tokens=tokens)
        session = engine.session()
        waiting = [[turn[stream] for turn in turns] for stream in range(len(turns[0]))]
        stream_of: dict[int, int] = {}
        answers: list[Answer] = []

        def send(stream: int) -> None:
            if waiting[stream]:
                row = session.submit(Request(waiting[stream].pop(0), sampling, sample=stream))
                stream_of[row] = stream
                answers.append(Answer(time.perf_counter(), []))

        for stream in range(len(waiting)):
            send(stream)
        while session.busy:
            pieces = session.round()
            now = time.perf_counter()
            for piece in pieces:
                answers[piece.row].times.append(now)
                if piece.end:
                    send(stream_of[piece.row])
        return answers

    return write


def batches(generate: Callable[[torch.Tensor, torch.Tensor, int, Clock], None]) -> Writer:
    """The streams of a turn as one batch, padded on the left."""

    def write(turns: list[list[list[int]]], tokens: int) -> list[Answer]:
        answers: list[Answer] = []
        for turn in turns:
            width = max(map(len, turn))
            ids = torch.tensor([[0] * (width - len(one)) + one for one in turn])
            mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in turn])
            sent, clock = time.perf_counter(), Clock()
            generate(ids, mask, tokens, clock)
            assert len(clock.times) == tokens, "stopped before its last token"
            answers += [Answer(sent, clock.times) for _ in turn]
        return answers

    return write


class Clock:
    """When each step's tokens are there; called as transformers' stopping criteria are, and as
    minimind's streamer."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def put(self, ids: torch.Tensor) -> None:
        """The prompt comes first, with more than one column or not; minimind gives both."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to say; the first call was the prompt's."""
        del self.times[0]


def qwen3(model: Transformer, runtime: Runtime) -> Callable[..., None]:
    """transformers' generate, with our weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = model.config
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    dtype = runtime.autocast_dtype or runtime.weight_dtype
    adopt(theirs, model).to(runtime.device, dtype)

    def generate(ids: torch.Tensor, mask: torch.Tensor, tokens: int, clock: Clock) -> None:
        theirs.generate(
            ids.to(runtime.device),
            attention_mask=mask.to(runtime.device),
            max_new_tokens=tokens,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            top_p=1.0,
            stopping_criteria=[clock],
        )

    return generate


def minimind(model: Transformer, runtime: Runtime, checkout: Path) -> Callable[..., None]:
    """minimind's own loop, with our weights in the precision of the run. Its script takes float16
    on every device, which CPUs multiply slowly."""
    sys.path.insert(0, str(checkout))
    from model.model_minimind import (  # pyright: ignore[reportMissingImports]
        MiniMindConfig,
        MiniMindForCausalLM,
    )

    config = model.config
    theirs = MiniMindForCausalLM(
        MiniMindConfig(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            vocab_size=config.vocab_size,
            intermediate_size=config.d_ff,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            max_position_embeddings=config.max_seq_len,
        )
    )
    dtype = runtime.autocast_dtype or runtime.weight_dtype
    adopt(theirs, model).to(runtime.device, dtype)

    @torch.inference_mode()
    def generate(ids: torch.Tensor, mask: torch.Tensor, tokens: int, clock: Clock) -> None:
        theirs.generate(
            ids.to(runtime.device),
            attention_mask=mask.to(runtime.device),
            max_new_tokens=tokens,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            top_p=1.0,
            eos_token_id=None,
            streamer=clock,
        )

    return generate


def adopt(theirs: torch.nn.Module, model: Transformer) -> torch.nn.Module:
    """Our weights under the names that Hugging Face and minimind share."""
    state = {}
    for name, weight in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        number = re.search(r"(?<=\.)\d+(?=\.)", module)
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", module, count=1)
        state[f"{LLAMA[pattern].format(number and number[0])}.{kind}"] = weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert not extra, extra
    assert not [name for name in missing if name.endswith("weight")], missing
    return theirs.eval()


if __name__ == "__main__":
    main()
