"""Rewards, the processes they run in, and the calculator that a completion may call."""

from __future__ import annotations

import os
import time

import pytest

from sparrowlm.errors import ConfigError
from sparrowlm.infer.calculator import calculate
from sparrowlm.infer.children import Child
from sparrowlm.infer.judging import Case, Judge
from sparrowlm.infer.tools import Toolbox
from sparrowlm.objectives import rewards

HOSTILE = """
import os, time
print("what a module prints is no answer")
def raises(completion, row):
    return 1 / 0
def nan(completion, row):
    return float("nan")
def text(completion, row):
    return "1"
def hangs(completion, row):
    if completion == "hang":
        time.sleep(60)
    print("nor is this")
    return 0.5
def dies(completion, row):
    os._exit(3)
def pid(completion, row):
    return os.getpid()
"""


@pytest.fixture
def hostile(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HOSTILE, encoding="utf-8")
    return lambda name: f"{path}:{name}"


def test_exact_match_and_final_number():
    assert rewards.exact_match(" 42\n", {"gold": 42}) == 1
    assert rewards.exact_match("42.", {"gold": "42"}) == 0
    row = {"gold": "1,200"}
    assert rewards.final_number("7 and 8 are #### 1200 of 9", row) == 1
    assert rewards.final_number("first 3, then 1200.0", row) == 1
    assert rewards.final_number("1200, then 3", row) == 0
    assert rewards.final_number("none", row) == 0
    assert rewards.number_in("x = -.5") == -0.5


def test_format_length_and_regex():
    assert rewards.format("<think>a</think>b", {}) == 1
    assert rewards.format("a</think>\n\nb", {}) == 1  # the prompt has opened the thought
    for bad in ("b", "<think>a</think>", "a</think>b</think>c", "<think><think>a</think>b"):
        assert rewards.format(bad, {}) == 0, bad
    length = rewards.named("length:4")
    assert [length("x" * n, {}) for n in (0, 4, 6, 8, 9)] == [1, 1, 0.5, 0, 0]
    assert rewards.named("regex:a.*:b")("xa\n:b", {}) == 1


@pytest.mark.parametrize("name", ["exact", "length:x", "length:0", "regex:(", "none.py:f"])
def test_a_reward_that_is_not_there_is_refused_before_anything_runs(name):
    with pytest.raises(ConfigError, match=r"rollout\.rewards"):
        Judge([name])


def test_failing_rewards_are_named_with_their_row_and_the_next_is_judged(hostile):
    names = [hostile(name) for name in ("raises", "nan", "text", "dies", "hangs", "pid")]
    with Judge(names, seconds=0.5) as judge:
        before, after = judge([
            Case("hang", {"gold": "1"}, "prompt 7, prompts.jsonl:9"),
            Case("fine", {"gold": "1"}, "prompt 8, prompts.jsonl:10"),
        ])  # fmt: skip
    assert before.values[:5] == (0, 0, 0, 0, 0)
    assert after.values[4] == 0.5
    assert before.values[5] != after.values[5] != os.getpid()  # what hung or died was replaced
    told = ("ZeroDivisionError", "nan", "'1'", "ended the process", "longer than 0.5 seconds")
    assert len(before.faults) == len(told)
    for fault, what in zip(before.faults, told, strict=True):
        assert what in fault
        assert "prompt 7, prompts.jsonl:9" in fault


def test_several_workers_keep_the_order(hostile):
    cases = [Case("x" * n, {"gold": ""}, "") for n in range(9)]
    with Judge(["length:8", hostile("pid")], workers=2) as judge:
        verdicts = judge(cases)
    lengths = [verdict.values[0] for verdict in verdicts]
    assert lengths == sorted(lengths, reverse=True)


def test_a_file_that_cannot_be_run_is_refused(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("import nothing_of_that_name", encoding="utf-8")
    with Judge([f"{path}:f"]) as judge, pytest.raises(ConfigError, match="nothing_of_that_name"):
        judge([Case("", {}, "")])


def test_judges_import_no_torch(tmp_path):
    path = tmp_path / "seen.py"
    path.write_text("import sys\ndef f(c, r): return float('torch' in sys.modules)", "utf-8")
    with Judge([f"{path}:f"]) as judge:
        assert judge([Case("", {}, "")])[0].values == (0.0,)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 2 * 3", "7"), ("(1+2)*3", "9"), ("-7 // 2", "-4"), ("7 / 2", "3.5"), ("6/3", "2"),
        ("2 ** 10", "1024"), ("10 % 4", "2"), ("0.1 + 0.2", "0.3"), ("+5", "5"),
        ("1 / 0", "error: division by zero"), ("", "error: this is no arithmetic expression"),
        ("2 ** 99999", "error: the result is too large"),
        ("9 ** 9 ** 9", "error: the result is too large"),
        ("1e308 * 10", "error: the result is too large"),
        ("(-8) ** 0.5", "error: the result is no real number"),
        ("(" * 200 + ")" * 200, "error"), ("-" * 400 + "1", "1"), ("1" * 501, "error"),
        ("__import__('os').system('id')", "error: only"), ("x", "error: only"),
        ("'a' * 9", "error"),
        ("[1] * 9", "error: only"), ("True + 1", "error: only"), ("1 if 1 else 2", "error: only"),
        ("(lambda: 1)()", "error: only"), ("1 << 9", "error: only"), ("1\x00", "error"),
        ("1; 2", "error: this"), ("9" * 499, "9"),
    ],
)  # fmt: skip
def test_the_calculator_knows_arithmetic_and_nothing_else(expression, result):
    began = time.perf_counter()
    assert calculate(expression).startswith(result)
    assert time.perf_counter() - began < 0.5


def call(arguments: str) -> str:
    return f'so <tool_call>{{"name": "calculator", "arguments": {arguments}}}</tool_call>'


def test_tool_calls_are_answered_whatever_they_hold():
    with Toolbox(["calculator"]) as tools:
        assert tools.answer("no call") is None
        assert tools.answer(call('{"expression": "6*7"}')) == "42"
        assert (
            tools.answer(call('{"expression": 6}')) == 'error: calculator needs {"expression": "…"}'
        )
        assert tools.answer(call("[]")).startswith("error")
        malformed = "error: a call is JSON with a name and arguments"
        assert tools.answer("<tool_call>6*7</tool_call>") == malformed
        assert tools.answer('<tool_call>{"name": "shell"}</tool_call>').startswith("error: no such")
        assert tools.answer("<tool_call>" + "[" * 9999 + "</tool_call>").startswith("error")


def test_a_tool_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="calculator"):
        Toolbox(["shell"])


def test_a_child_that_was_killed_is_replaced(hostile):
    child = Child("sparrowlm.infer.judge", (hostile("pid"),))
    request = {"reward": 0, "completion": "", "row": {}}
    first = child.ask(request, 5.0)["value"]
    child.close()
    assert child.ask(request, 5.0)["value"] != first
    child.close()


def test_the_working_directory_serves_a_users_file_and_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "signal.py").write_text("raise SystemExit(1)\n", encoding="utf-8")
    (tmp_path / "beside.py").write_text("WORTH = 0.25\n", encoding="utf-8")
    program = "import beside\ndef judge(completion, row):\n    return beside.WORTH\n"
    (tmp_path / "mine.py").write_text(program, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with Judge(("mine.py:judge",)) as judge:
        (verdict,) = judge([Case("", {}, "a:1")])
    assert verdict.values == (0.25,)
