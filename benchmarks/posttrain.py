"""Useful tokens a second of fine-tuning: packed rows against minimind's padded loop.

    python benchmarks/posttrain.py --data gsm8k_train.chat.jsonl.zst \
        --tokenizer tokenizers/minimind-3 --minimind PATH

The 26.9M shape of `benchmarks/step.py` on conversations at a context of 512, a whole step of AdamW
with clipping. A useful token is attended and counted: on our side the learned targets of packed
rows, on minimind's the labels that its own dataset class leaves in. All run in turns on the same
conversations, so that all see the same machine: Sparrow and minimind in the precision asked for,
and minimind as it is shipped too: `trainer/train_full_sft.py` uses no autocast on a CPU.

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sparrowlm.config import DataConfig, ModelConfig, TokenizerConfig, resolve_model
from sparrowlm.data.chats import open_sequences, prepare_sequences
from sparrowlm.data.sequences import PackedStream
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.runtime import Runtime, detect, machine, synchronize
from sparrowlm.text.reading import read_blocks

Work = Callable[[], tuple[int, int]]
"""One step: how many tokens were learned, and how many positions computed."""


def main() -> None:
    """Measure in turns and print the JSON line."""
    parser = argparse.ArgumentParser(description="Useful tokens a second of fine-tuning.")
    parser.add_argument("--data", type=Path, required=True, help="conversations")
    parser.add_argument("--tokenizer", type=Path, required=True, help="minimind-3's folder")
    parser.add_argument("--minimind", type=Path, help="a checkout, to compare with")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--rounds", type=int, default=5, help="of one step each, in turns")
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    runtime = detect(options.device, options.precision)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"sparrow": ours(options, runtime, Path(folder))}
        if options.minimind:
            sides["minimind"] = theirs(options, runtime, Path(folder))
            if runtime.autocast_dtype is not None and runtime.device.type == "cpu":
                shipped = detect(options.device, "float32")
                sides["minimind_as_shipped"] = theirs(options, shipped, Path(folder))
        for work in sides.values():  # warm up
            work()
        found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, work in sides.items():
                synchronize(runtime.device)
                began = time.perf_counter()
                learned, positions = work()
                synchronize(runtime.device)
                found[name].append((time.perf_counter() - began, learned, positions))
    print(json.dumps(result(options, runtime, found), ensure_ascii=False))


def ours(options: argparse.Namespace, runtime: Runtime, folder: Path) -> Work:
    """A step on packed rows."""
    tokenizer = TokenizerConfig(kind="folder", path=str(options.tokenizer))
    config = DataConfig(path=(str(options.data),), val_fraction=0.0)
    dataset = open_sequences(
        prepare_sequences(config, tokenizer, folder / "cache", "chats", options.context)
    )
    stream = PackedStream(dataset.train, options.context, options.rows, seed=1337)
    shape = ModelConfig(
        d_model=options.d_model,
        n_layers=options.layers,
        n_heads=8,
        n_kv_heads=4,
        d_ff=options.d_model * 11 // 4,
        max_seq_len=options.context,
    )
    model = Transformer(resolve_model(shape, dataset.vocab_size))
    model.init_weights(seed=1337)
    model.to(runtime.device, runtime.weight_dtype)
    objective, parameters = NextToken().to(runtime.device), list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    steps = iter(range(1 << 30))

    def work() -> tuple[int, int]:
        batch = stream.batch(next(steps)).to(runtime.device)
        count = int(batch.mask.sum())
        with runtime.autocast():
            total = objective(model, batch).total
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return count, batch.tokens.numel()

    return work


def theirs(options: argparse.Namespace, runtime: Runtime, folder: Path) -> Work:
    """A step of minimind's own: its dataset class, its model, rows padded to the context."""
    sys.path.insert(0, str(options.minimind))
    if importlib.util.find_spec("datasets") is None:
        sys.modules["datasets"] = _rows_reader()
    from dataset.lm_dataset import SFTDataset  # pyright: ignore
    from model.model_minimind import MiniMindConfig, MiniMindForCausalLM  # pyright: ignore
    from transformers import AutoTokenizer

    plain = folder / "chats.jsonl"
    plain.write_bytes(b"".join(read_blocks(options.data)))
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    dataset = SFTDataset(str(plain), tokenizer, max_length=options.context)
    torch.manual_seed(1337)
    config = MiniMindConfig(
        hidden_size=options.d_model,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
    )
    model: Any = MiniMindForCausalLM(config).to(runtime.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batches = _batches(dataset, options.rows)

    def work() -> tuple[int, int]:
        ids, labels = (part.to(runtime.device) for part in next(batches))
        with runtime.autocast():
            loss = model(ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return int((labels[:, 1:] != -100).sum()), ids.numel()

    return work


def _rows_reader() -> types.ModuleType:
    """What minimind's dataset class asks of Hugging Face's `datasets`, where that is not there: the
    rows of a file, with every key in every message. It does nothing else with the package."""
    keys = ("role", "content", "reasoning_content", "tools", "tool_calls")

    def load_dataset(_: str, data_files: str, **__: Any) -> list[dict[str, Any]]:
        # Not splitlines: answers hold U+2028, which is a character to JSON and a line end to it.
        lines = Path(data_files).read_text(encoding="utf-8").rstrip("\n").split("\n")
        return [
            {"conversations": [{key: turn.get(key) for key in keys} for turn in row]}
            for row in (json.loads(line)["conversations"] for line in lines)
        ]

    module = types.ModuleType("datasets")
    names = {"Features": dict, "Sequence": list, "Value": str, "load_dataset": load_dataset}
    module.__dict__.update(names)
    return module


def _batches(dataset: Any, rows: int) -> Iterator[list[torch.Tensor]]:
    """Batches in a shuffled order, for ever, as minimind's loader gives them."""
    while True:
        yield from torch.utils.data.DataLoader(
            dataset, batch_size=rows, shuffle=True, drop_last=True
        )


def result(
    options: argparse.Namespace,
    runtime: Runtime,
    found: dict[str, list[tuple[float, int, int]]],
) -> dict[str, Any]:
    """The figures with their conditions."""
    told: dict[str, Any] = {"benchmark": "posttrain"}
    rates = {}
    for name, rounds in found.items():
        rates[name] = statistics.median(learned / seconds for seconds, learned, _ in rounds)
        told[name] = {
            "useful_tokens_per_second": round(rates[name], 1),
            "useful_share": round(sum(one[1] for one in rounds) / sum(one[2] for one in rounds), 4),
            "step_seconds": round(statistics.median(one[0] for one in rounds), 4),
        }
    for name in rates.keys() - {"sparrow"}:
        told[f"ratio_to_{name}"] = round(rates["sparrow"] / rates[name], 2)
    return told | {
        "rounds": options.rounds,
        "rows": options.rows,
        "context": options.context,
        "precision": runtime.precision,
        "device": str(runtime.device),
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
