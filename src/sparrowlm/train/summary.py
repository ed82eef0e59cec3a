"""The figures of a finished run: `summary.json`."""

from __future__ import annotations

from typing import Any

from sparrowlm.checkpoint import RunFolder
from sparrowlm.data.mixture import Mixture
from sparrowlm.data.sequences import AnyDataset
from sparrowlm.data.shards import Dataset
from sparrowlm.evaluate.yardsticks import (
    gzip_bits_per_byte,
    primed_xz_bits_per_byte,
    xz_bits_per_byte,
)
from sparrowlm.train.build import Parts

YARDSTICK_TOKENS = 20_000_000  # held out or trained on; xz takes a second for each megabyte


def summarize(run: RunFolder, parts: Parts, dataset: AnyDataset) -> dict[str, Any]:
    """The figures of a finished run, from its log; null where unknown.

    `train_loss` is the mean of the last tenth of the steps, 100 at most; `val_loss` the best that
    was measured, or that of the last step where `eval.whole_at_end` asked for the whole split.
    """
    rows = list(run.rows("metrics.jsonl"))
    steps = [row for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    state = parts.trainer.state
    # A run that was made longer has one of each of its ends.
    whole = [row for row in rows if row["kind"] == "eval_whole" and row["step"] == state.step]
    measured = [row for row in whole or evals if row["step"] and row["val_loss"] is not None]
    best = min(measured, key=lambda row: row["val_loss"], default={})
    answered = [row for row in evals if row["step"] and row.get("val_reward") is not None]
    rewards = [row["val_reward"] for row in answered]
    last = steps[-max(1, min(100, len(steps) // 10)) :]
    tail = [row["loss"] for row in last if row["loss"] is not None]
    speeds = sorted(row["tokens_per_second"] for row in steps)
    shares = sorted(row["mfu"] for row in steps if row["mfu"] is not None)
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        "train_loss": sum(tail) / len(tail) if tail else None,
        "val_loss": best.get("val_loss"),
        "val_bits_per_byte": best.get("val_bits_per_byte"),
        **({"val_reward": max(rewards)} if rewards else {}),
        **yardsticks(dataset),
        **({"sources": by_source(dataset, steps, best)} if isinstance(dataset, Mixture) else {}),
        "wall_seconds": round(state.seconds, 3),
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        "mfu": shares[len(shares) // 2] if shares else None,
        "peak_memory_bytes": max((row["memory_bytes"] for row in steps), default=0),
    }


def by_source(
    mixture: Mixture, steps: list[dict[str, Any]], best: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What was drawn of each source of a mixture, how often it was gone through, and what it
    costs held out."""
    last = steps[-1] if steps else {}
    found = {}
    for part in mixture.parts:
        tokens = last.get(f"tokens/{part.name}", 0)
        found[part.name] = {
            "weight": part.weight,
            "tokens": tokens,
            "passes": round(tokens / len(part.dataset.train), 3),
            "val_loss": best.get(f"val_loss/{part.name}"),
            "val_bits_per_byte": best.get(f"val_bits_per_byte/{part.name}"),
        }
    return found


def yardsticks(dataset: AnyDataset) -> dict[str, float | None]:
    """What compressors make of the held-out bytes; null without a tokenizer or held-out split,
    and primed where the training text is too large for xz to remember. Null for a mixture, whose
    held-out loss is weighted as no file is, and for sequences, of which only a part counts."""
    keys = ("gzip_bits_per_byte", "xz_bits_per_byte", "xz_primed_bits_per_byte")
    if not isinstance(dataset, Dataset) or isinstance(dataset, Mixture):
        return dict.fromkeys(keys)
    held_out = dataset.val_bytes(YARDSTICK_TOKENS)
    if not held_out:
        return dict.fromkeys(keys)
    primed = None
    if len(dataset.train) <= YARDSTICK_TOKENS:
        primed = primed_xz_bits_per_byte(held_out, dataset.train_bytes() or b"")
    return dict(
        zip(keys, (gzip_bits_per_byte(held_out), xz_bits_per_byte(held_out), primed), strict=True)
    )
