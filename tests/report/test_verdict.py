"""The sentences say what the numbers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparrowlm.report.read import Run
from sparrowlm.report.sections import SAMPLE_STEPS, chosen
from sparrowlm.report.verdict import comparison, headline, in_short, yardsticks


def run_of(bits: float | None, log: list[tuple[float, float]] = (), **yards: float) -> Run:  # type: ignore[assignment]
    evals = [
        {"step": index, "seconds": at, "val_loss": 2 * value, "val_bits_per_byte": value}
        for index, (at, value) in enumerate(log)
    ]
    given = {f"{name}_bits_per_byte": value for name, value in yards.items()}
    return Run(
        Path("x"), summary={"val_bits_per_byte": bits, "val_loss": 2.0, **given}, evals=evals
    )


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (
            run_of(1.6, gzip=1.9, xz=1.5),
            "It beats gzip -9 (1.900), but not xz -9 (1.500).",
        ),
        (
            run_of(1.6, [(10, 2.5), (20, 1.8), (30, 1.6)], gzip=1.9),
            "It beats gzip -9 (1.900, passed after 20 s).",
        ),
        (
            run_of(2.0, gzip=1.9, xz_primed=1.4),
            "It does not beat gzip -9 (1.900) or xz primed by the training text (1.400).",
        ),
        (run_of(1.6), "No compressor was measured beside it."),
        (run_of(None, gzip=1.9), "Bits per byte are unknown, for the data brings no tokenizer."),
    ],
)
def test_comparison_in_words(run: Run, sentence: str) -> None:
    assert comparison(run) == sentence


def test_a_tie_is_not_a_win() -> None:
    assert not yardsticks(run_of(1.5, xz=1.5))[0].beaten


def test_the_best_evaluation_is_named_where_it_was_not_the_last() -> None:
    told = headline(run_of(1.6, [(10, 1.8), (20, 1.6), (30, 1.7)]))
    assert told.endswith("1.600 bits per byte of text it has not seen, at step 1, its best.")


def test_a_run_without_a_summary_is_told_from_its_log() -> None:
    evals = [{"kind": "eval", "step": 5, "seconds": 3.0, "val_loss": 2.5, "val_bits_per_byte": 1.7}]
    train = [{"kind": "train", "step": 7, "seconds": 4.0, "loss": 2.4}]
    told = headline(Run(Path("x"), train=train, evals=evals))
    assert (
        told == "After 4 s and 7 steps the model needs 1.700 bits per byte of text it has not seen."
    )


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 8, 60, 1000])
def test_samples_shown_keep_the_first_and_the_last(count: int) -> None:
    rows = [{"step": step, "prompt": "", "text": str(step)} for step in range(1, count + 1)]
    shown, total = chosen(rows)
    steps = [step for step, _ in shown]
    assert total == count
    assert len(steps) == min(count, SAMPLE_STEPS) == len(set(steps))
    assert steps[0] == 1
    assert steps[-1] == count


def test_a_judged_run_is_told_by_its_rewards_beside_where_it_began() -> None:
    evals = [{"step": 0, "val_reward": 0.25}, {"step": 40, "val_reward": 0.75}]
    run = Run(Path("x"), summary={"steps": 40, "val_reward": 0.75}, evals=evals)
    told = in_short(run)
    assert (
        told
        == "After 40 steps answers to held-out prompts earn 0.750 (0.250 before the first step)."
    )


def test_a_run_of_pairs_has_no_nats_and_no_bits() -> None:
    evals = [{"step": 0, "val_loss": 0.693, "val_accuracy": 0.5}, {"step": 9, "val_loss": 0.5}]
    told = in_short(Run(Path("x"), summary={"steps": 9, "val_loss": 0.5}, evals=evals))
    assert told == "After 9 steps the held-out loss is 0.500 (0.693 before the first step)."
