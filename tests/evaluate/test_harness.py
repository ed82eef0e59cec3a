"""Tasks of lm-eval through our model, against lm-eval's own on the same weights in transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sparrowlm.config import TokenizerConfig
from sparrowlm.errors import ConfigError, EnvironmentFault, TokenizerError
from sparrowlm.evaluate.answering import Subject
from sparrowlm.text.tokenizer import character_tokenizer, make_tokenizer

if os.environ.get("CI") != "true":
    pytest.importorskip("lm_eval", reason="needs lm-eval")
pytestmark = pytest.mark.slow

WORDS = "The sparrow is small, and no organ is missing. 麻雀虽小，五脏俱全。\n"
QUESTIONS = [
    {"q": f"Q: is {n} a bird? A:", "choices": ["yes", "no, never", "也许"], "gold": n % 3, "n": n}
    for n in range(9)
] + [{"q": "x " * 90, "choices": ["yes", "no", "maybe"], "gold": 1, "n": 9}]
TASKS = {
    "choosing": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_bytes"}],
    },
    "saying": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["B", "\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
    "reading": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}} The sparrow is small, and no organ is missing: 五脏俱全。",
        "metric_list": [
            {"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with a vocabulary of ours as transformers has it, the same as a run, and
    tasks on rows beside them."""
    import transformers

    from sparrowlm.share.adopt import adopt

    folder = tmp_path_factory.mktemp("harness")
    tokenizer = make_tokenizer(TokenizerConfig(vocab_size=320), lambda: [WORDS * 20])
    config = transformers.Qwen3Config(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, head_dim=16,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    model.save_pretrained(folder / "hf")
    tokenizer.save(folder / "hf")
    adopt(folder / "hf", folder / "run")
    (folder / "tasks").mkdir()
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in QUESTIONS)
    (folder / "tasks" / "rows.jsonl").write_text(rows, encoding="utf-8")
    data = {"test": str(folder / "tasks" / "rows.jsonl")}
    kept = {"cache_dir": str(folder / "cache"), "data_files": data}
    for name, task in TASKS.items():
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": kept, "test_split": "test"}
        # YAML is a superset of JSON.
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(whole | task), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    from sparrowlm.pipeline import load_run

    loaded = load_run(folder / "run", "cpu", "float32")
    return Subject(loaded.model, loaded.tokenizer, loaded.runtime)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    import transformers
    from lm_eval.models.huggingface import HFLM

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")


def asked(kind: str, *arguments: Any) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_loglikelihoods_against_hflm(subject: Subject, theirs: Any) -> None:
    from sparrowlm.evaluate.harness_model import SparrowLM

    pairs = [(row["q"], f" {choice}") for row in QUESTIONS for choice in row["choices"]]
    pairs += [("", "sparrow"), ("ends in a space ", "and goes on"), ("a", "b")]
    pairs += [("The sparrow", " is small" * 3)]
    ours = SparrowLM(subject).loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    want = theirs.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    assert [likeliest for _, likeliest in ours] == [likeliest for _, likeliest in want]
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in want], abs=1e-4)


def test_whole_texts_against_hflm(subject: Subject, theirs: Any) -> None:
    from sparrowlm.evaluate.harness_model import SparrowLM

    texts = [(WORDS * 9,), ("a",), (WORDS,), ("x " * 64,)]
    ours = SparrowLM(subject).loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
    want = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
    assert ours == pytest.approx(want, abs=2e-4)


def test_what_is_written_against_hflm(subject: Subject, theirs: Any) -> None:
    from sparrowlm.evaluate.harness_model import SparrowLM

    # No stop string is part of a special token's name: HFLM looks for it there too.
    settings = {"until": ["B", "\n\n"], "max_gen_toks": 20, "do_sample": False}
    contexts = [(row["q"], settings) for row in QUESTIONS]
    contexts += [("The sparrow", {"until": [], "max_gen_toks": 30})]
    ours = SparrowLM(subject).generate_until(asked("generate_until", *contexts))
    want = theirs.generate_until(asked("generate_until", *contexts), disable_tqdm=True)
    assert ours == want
    assert len(set(ours)) > 3


def test_figures_of_tasks_against_hflm(folder: Path, subject: Subject, theirs: Any) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from sparrowlm.evaluate.harness import harness

    names = list(TASKS)
    found = harness(names, subject, folder=folder / "tasks")
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    want = simple_evaluate(model=theirs, tasks=names, task_manager=manager, log_samples=False)
    assert want is not None
    assert [one.name for one in found] == sorted(names, key=list(want["results"]).index)
    for one in found:
        assert "10 documents" in one.how
        for label, figure in one.figures.items():
            values = want["results"][one.name]
            assert figure.value == pytest.approx(values[f"{label},none"], rel=1e-4), label
            error = values[f"{label}_stderr,none"]
            if figure.stderr is not None:
                assert figure.stderr == pytest.approx(error, rel=1e-4)
    by_name = {one.name: one.figures for one in found}
    assert by_name["choosing"].keys() == {"acc", "acc_norm", "acc_bytes"}
    assert by_name["choosing"]["acc"].stderr is not None


def test_our_own_choices_are_those_of_lm_eval(
    folder: Path, subject: Subject, tmp_path: Path
) -> None:
    """The same rows as a task file of ours: accuracy is acc, accuracy_norm is acc_bytes."""
    from sparrowlm.evaluate.answering import answer
    from sparrowlm.evaluate.harness import harness
    from sparrowlm.evaluate.tasks import load_task

    toml = tmp_path / "own.toml"
    toml.write_text('prompt = "{q}"\nbefore = " "', encoding="utf-8")
    own = answer(load_task(f"{toml}={folder / 'tasks' / 'rows.jsonl'}"), subject).figures
    [theirs] = harness(["choosing"], subject, folder=folder / "tasks")
    assert own["accuracy"].value == pytest.approx(theirs.figures["acc"].value)
    assert own["accuracy_norm"].value == pytest.approx(theirs.figures["acc_bytes"].value)
    assert own["accuracy"].stderr == pytest.approx(theirs.figures["acc"].stderr)


def test_chats_are_rendered_as_transformers_renders_them(subject: Subject, theirs: Any) -> None:
    from sparrowlm.evaluate.harness_model import SparrowLM

    lm = SparrowLM(subject, chat=True)
    history = [{"role": "user", "content": "is it a bird?"}]
    text = lm.apply_chat_template(history)
    assert text == theirs.apply_chat_template(history)
    assert lm.tok_encode(text) == theirs.tok_encode(text)
    history.append({"role": "assistant", "content": "Yes, it "})  # to be gone on with
    text = lm.apply_chat_template(history, add_generation_prompt=False)
    assert text == theirs.apply_chat_template(history, add_generation_prompt=False)
    assert text.endswith("</think>\n\nYes, it ")


def test_answers_in_a_chat_end_as_with_hflm(
    subject: Subject, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HFLM's model has the end of a turn among its ends, as an export says it."""
    from sparrowlm.evaluate.harness_model import SparrowLM

    ends = [subject.tokenizer.eot_id, subject.tokenizer.special_ids["<|im_end|>"]]
    monkeypatch.setattr(theirs.model.generation_config, "eos_token_id", ends)
    lm = SparrowLM(subject, chat=True)
    settings = {"until": ["B"], "max_gen_toks": 20, "do_sample": False}
    questions = [*(row["q"] for row in QUESTIONS), "x", "b x", "a", "is it?"]
    turns = [[{"role": "user", "content": question}] for question in questions]
    contexts = [(lm.apply_chat_template(history), settings) for history in turns]
    ours = lm.generate_until(asked("generate_until", *contexts))
    assert ours == theirs.generate_until(asked("generate_until", *contexts), disable_tqdm=True)
    assert "" in ours
    assert len(set(ours)) > 2


def test_another_projects_template_begins_an_answer_its_own_way(subject: Subject) -> None:
    from sparrowlm.evaluate.harness_model import SparrowLM
    from sparrowlm.text.tokenizer import Tokenizer

    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ': ' + m.content + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
    )
    theirs = Tokenizer(subject.tokenizer.definition, "folder", {"chat_template": template})
    lm = SparrowLM(subject._replace(tokenizer=theirs), chat=True)
    text = lm.apply_chat_template([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>user: hi<|im_end|><|im_start|>assistant: "


def test_a_choice_that_merges_into_its_context_is_no_better_for_it(subject: Subject) -> None:
    from sparrowlm.evaluate.harness_model import SparrowLM

    lm = SparrowLM(subject)
    context, continuation = "The spa", "rrow"
    assert len(lm.tok_encode(context + continuation)) <= len(lm.tok_encode(context))
    [(nats, _)] = lm.loglikelihood(asked("loglikelihood", (context, continuation)))
    assert nats < -1


def test_a_task_that_nobody_knows() -> None:
    from sparrowlm.evaluate.harness import check_names

    check_names(["hellaswag"], ["arc_easy", "hellaswag"])
    with pytest.raises(ConfigError, match="did you mean hellaswag"):
        check_names(["hellaswagg"], ["arc_easy", "hellaswag"])
    with pytest.raises(ConfigError, match="lm-eval ls tasks"):
        check_names(["x"], ["arc_easy", "hellaswag"])


def test_a_dataset_out_of_reach(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from sparrowlm.evaluate.harness import harness

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    task = {"task": "far", "dataset_path": "nobody/nothing", "test_split": "test"}
    (tmp_path / "far.yaml").write_text(json.dumps(task | TASKS["choosing"]), encoding="utf-8")
    with pytest.raises(EnvironmentFault, match="cannot reach the dataset of far") as fault:
        harness(["far"], subject, folder=tmp_path)
    for told in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "--harness-tasks"):
        assert told in str(fault.value)


def test_a_vocabulary_without_an_end_of_text(subject: Subject) -> None:
    from sparrowlm.evaluate.harness_model import SparrowLM

    with pytest.raises(TokenizerError, match="endoftext"):
        SparrowLM(subject._replace(tokenizer=character_tokenizer("abc")))
