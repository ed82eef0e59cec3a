"""Task files, and what a model makes of them, against a computation by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparrowlm.config import ModelConfig, TokenizerConfig
from sparrowlm.errors import ConfigError, DataError
from sparrowlm.evaluate.answering import Subject, answer, encode_pair
from sparrowlm.evaluate.figures import pass_at
from sparrowlm.evaluate.tasks import (
    TaskRow,
    context_of,
    fill,
    find_task,
    load_task,
    messages_of,
)
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.runtime import Runtime
from sparrowlm.text.tokenizer import byte_tokenizer, make_tokenizer
from writing_support import full_logits, random_model

TASKS = Path(__file__).parents[2] / "recipes" / "tasks"
SHAPE = ModelConfig(vocab_size=264, d_model=16, n_layers=1, n_heads=2, max_seq_len=96)


@pytest.fixture(scope="module")
def subject() -> Subject:
    runtime = Runtime(torch.device("cpu"), "float64")
    return Subject(random_model(SHAPE), byte_tokenizer(), runtime)


def written(folder: Path, toml: str, *rows: dict[str, Any]) -> str:
    """A task's file and its rows."""
    (folder / "mine.toml").write_text(toml, encoding="utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "mine.jsonl").write_text(lines, encoding="utf-8")
    return str(folder / "mine.toml")


def nats(subject: Subject, context: str, continuation: str) -> float:
    """By a pass over the bytes."""
    ids = list((context + continuation).encode())
    logits = full_logits(subject.model, ids[:-1]).log_softmax(-1)
    start = len(context.encode())
    return sum(logits[place - 1, ids[place]].item() for place in range(start, len(ids)))


def test_a_choice_that_merges_into_its_context_has_ids_of_its_own() -> None:
    """Without any it would be as likely as can be."""
    text = "the sparrow is small " * 30
    tokenizer = make_tokenizer(TokenizerConfig(vocab_size=300), lambda: [text])
    context, own = encode_pair(tokenizer, "the sparr", "ow")
    assert len(tokenizer.encode("the sparrow")) <= len(context)
    assert tokenizer.decode(own) == "ow"


def test_rows_from_elsewhere_are_part_of_the_name(tmp_path: Path) -> None:
    toml = written(tmp_path, 'prompt = "{q}"', *ROWS)
    for name in ("easy", "hard"):
        (tmp_path / f"{name}.jsonl").write_bytes((tmp_path / "mine.jsonl").read_bytes())
        assert load_task(f"{toml}={tmp_path / name}.jsonl").name == f"mine={name}.jsonl"
    assert load_task(toml).name == "mine"


ROWS = [
    {"q": f"{a}?", "options": ["yes", "no, it is not", "也许"], "answer": a % 3} for a in range(12)
]


def test_accuracy_by_hand(subject: Subject, tmp_path: Path) -> None:
    toml = 'prompt = "Q: {q}"\nbefore = " "\nchoices = "options"\ngold = "answer"'
    found = answer(load_task(written(tmp_path, toml, *ROWS)), subject)
    plain = normed = 0
    for row in ROWS:
        sums = [nats(subject, f"Q: {row['q']}", f" {text}") for text in row["options"]]
        by_byte = [one / len(text.encode()) for one, text in zip(sums, row["options"], strict=True)]
        plain += sums.index(max(sums)) == row["answer"]
        normed += by_byte.index(max(by_byte)) == row["answer"]
    assert 0 < plain + normed < 24
    assert (found.figures["accuracy"].total, found.figures["accuracy"].count) == (plain, 12)
    assert found.figures["accuracy_norm"].total == normed
    assert found.figures["chance"].value == pytest.approx(1 / 3)
    share = plain / 12
    assert found.figures["accuracy"].stderr == pytest.approx(
        math.sqrt(share * (1 - share) / 11), abs=1e-12
    )


def test_long_contexts_lose_their_beginning_and_it_says_so(
    subject: Subject, tmp_path: Path
) -> None:
    rows = [{"prompt": "x" * 200 + "the end", "choices": [" a", " b"], "gold": " a"}]
    found = answer(load_task(written(tmp_path, "", *rows)), subject)
    kept = "x" * (97 - 9) + "the end"
    sums = [nats(subject, kept, text) for text in (" a", " b")]
    assert found.figures["accuracy"].total == float(sums[0] > sums[1])
    assert "2 of 2 continuations lost the beginning" in found.notes[0]


def test_completions_and_pass_at_k_by_hand(subject: Subject, tmp_path: Path) -> None:
    toml = 'kind = "generate"\nscorer = "regex:[A-z]"\nn = 3\nk = [1, 2, 3]\ntemperature = 9.0\n'
    toml += 'max_tokens = 4\ntop_k = 200\nseed = 5\nstop = ["z"]'
    rows = [{"prompt": f"row {number} "} for number in range(6)]
    found = answer(load_task(written(tmp_path, toml, *rows)), subject)
    engine = Engine(subject.model, subject.tokenizer, subject.runtime)
    sampling = Sampling(temperature=9.0, top_k=200, max_tokens=4, seed=5, stop=("z",))
    counts = []
    for row in rows:
        ids, texts = engine.prompt(row["prompt"]), []
        for sample in range(3):
            pieces = engine.stream([Request(ids, sampling, sample)])
            drawn = [piece.token for piece in pieces if piece.token != 256]
            texts.append(subject.tokenizer.decode(drawn).partition("z")[0])
        counts.append(sum(any("A" <= mark <= "z" for mark in text) for text in texts))
    assert 0 < sum(counts) < 18
    for k in (1, 2, 3):
        expected = sum(pass_at(k, 3, right) for right in counts) / 6
        assert found.figures[f"pass@{k}"].value == pytest.approx(expected, abs=1e-12)
    assert found.figures["pass@1"].total == pytest.approx(sum(counts) / 3)


def test_a_prompt_without_room_counts_as_failed(subject: Subject, tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 120}, {"prompt": "x"}]
    toml = 'kind = "generate"\nscorer = "length:9999"\nmax_tokens = 2'
    found = answer(load_task(written(tmp_path, toml, *rows)), subject)
    assert (found.figures["pass@1"].total, found.figures["pass@1"].count) == (1, 2)
    assert "1 of 2 prompts are longer than the context: counted as failed" in found.notes


def test_templates_fill_in_and_run_nothing() -> None:
    row = TaskRow({"a": 1, "b": "{a}", "c": None}, "rows.jsonl:3")
    assert fill("{a} {{b}} {b} {c}", row) == "1 {b} {a} None"
    for template in ("{a.__class__}", "{a[0]}", "{", "}", "{}", "{0!r}"):
        with pytest.raises(DataError, match="lone"):
            fill(template, row)
    with pytest.raises(DataError, match=r"rows.jsonl:3: no key 'bb'\n.*did you mean b\?"):
        fill("{bb}", row)


def test_shots_are_other_rows_with_their_answers(tmp_path: Path) -> None:
    rows = [{"prompt": letter, "choices": ["0", "1"], "gold": 1} for letter in "abcd"]
    task = load_task(written(tmp_path, 'shots = 2\nbefore = ":"\nbetween = "\\n"', *rows))
    assert context_of(task, 0) == "b:1\nc:1\na"
    assert context_of(task, 3) == "a:1\nb:1\nd"
    turns = [(turn["role"], turn["content"]) for turn in messages_of(task, 3)]
    assert turns == [
        ("user", "a"), ("assistant", "1"), ("user", "b"), ("assistant", "1"), ("user", "d")
    ]  # fmt: skip


def test_all_faults_of_a_task_together(tmp_path: Path) -> None:
    toml = 'kind = "generate"\npromt = "x"\nn = 2\nk = [3]\nscorer = "exact"\nchat = 1'
    with pytest.raises(ConfigError) as fault:
        load_task(written(tmp_path, toml, {"prompt": "a"}))
    for told in (
        "line 2: unknown key promt; did you mean prompt?",
        "line 6: chat is 1",
        "each must be 1 to n, 2",
        "temperature 0",
        'scorer "exact" no such reward',
    ):
        assert told in str(fault.value)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a", "choices": ["x"], "gold": 0}, "no list of two"),
        ({"prompt": "a", "choices": ["x", "y"], "gold": 2}, "its place, 0 to 1"),
        ({"prompt": "a", "choices": ["x", ""], "gold": 0}, "empty"),
        ({"prompt": "a", "choices": ["x", "y"]}, "no key 'gold'"),
        ({"choices": ["x", "y"], "gold": 0}, "no key 'prompt'"),
    ],
)
def test_a_bad_row_is_named(
    row: dict[str, Any], told: str, subject: Subject, tmp_path: Path
) -> None:
    good = {"prompt": "a", "choices": ["x", "y"], "gold": 0}
    with pytest.raises(DataError, match=rf"mine.jsonl:2: .*{told}"):
        answer(load_task(written(tmp_path, "", good, row)), subject)


def test_no_such_task_and_no_such_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean arithmetic"):
        load_task("arithmetics")
    with pytest.raises(DataError, match="--task gsm8k=FILE"):
        load_task("gsm8k")
    lines = written(tmp_path, "", {"prompt": "a", "choices": ["x", "y"], "gold": 0})
    assert len(load_task(f"{lines}={tmp_path / 'mine.jsonl'}").rows) == 1


def test_pairs_are_cut_as_lm_eval_cuts_them() -> None:
    tokenizer = byte_tokenizer()
    assert encode_pair(tokenizer, "a \n", "b") == ([97], [32, 10, 98])
    assert encode_pair(tokenizer, "", "b") == ([256], [98])
    assert encode_pair(tokenizer, "  ", "b") == ([256], [32, 32, 98])


@pytest.mark.parametrize("name", sorted(path.stem for path in TASKS.glob("*.toml")))
def test_a_task_of_ours_can_be_asked(name: str) -> None:
    assert find_task(name) == TASKS / f"{name}.toml"
    if name == "gsm8k":  # brings no rows
        return
    task = load_task(name)
    assert len(task.rows) >= 24
    assert len({json.dumps(row.values) for row in task.rows}) == len(task.rows)
    for number, row in enumerate(task.rows):
        assert context_of(task, number)
        if task.config.kind == "choice":
            assert len(set(row.values["choices"])) == len(row.values["choices"])
            assert 0 <= row.values["gold"] < len(row.values["choices"])
        else:
            values = row.values
            signed = values["b"] if values["sign"] == "+" else -values["b"]
            assert values["result"] == values["a"] + signed
    if task.config.kind == "choice":
        places = [row.values["gold"] for row in task.rows]
        assert max(map(places.count, places)) < len(places) * 0.6  # no place is the safe guess


def test_gsm8k_from_the_shared_prompts(shared_data: Path) -> None:
    task = load_task(f"gsm8k={shared_data / 'gsm8k_test.prompts.jsonl.zst'}", limit=5)
    assert task.rows[0].values["gold"] == "18"
    assert messages_of(task, 0)[0]["content"].startswith("Janet")
