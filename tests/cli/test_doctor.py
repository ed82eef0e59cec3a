"""The doctor finds this machine healthy, and knows the cards that need another PyTorch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparrowlm.cli import checks, main
from sparrowlm.cli.checks import Finding, build_advice, card_advice, self_test, speed
from sparrowlm.runtime import Runtime
from sparrowlm.train import compiler
from sparrowlm.train.compiler import compile_fault

CPU = Runtime(device=torch.device("cpu"), precision="float32")
PYPI = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def test_doctor_finds_this_machine_healthy_and_says_so_in_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"]
    found = {finding["name"]: finding for finding in told["findings"]}
    assert {"versions", "processor", "memory", "products", "precision", "compile"} <= found.keys()
    assert found["memory"]["facts"]["total_bytes"] > found["memory"]["facts"]["available_bytes"] > 0
    assert found["products"]["facts"]["flops_per_second"]["float32"] > 1e8
    assert found["self-test"]["facts"]["last_loss"] < 5
    assert list(tmp_path.iterdir()) == []


def test_a_fault_is_printed_with_its_fix_and_exit_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(_: Runtime) -> Iterator[Finding]:
        yield Finding("memory", "enough")
        yield Finding("card", "not used", "fault", "do this")

    monkeypatch.setattr(checks, "all_checks", found)
    assert main(["doctor", "--device", "cpu"]) == 3
    printed = capsys.readouterr()
    assert "fix: do this" in printed.out
    assert "1 thing to mend: card" in printed.err


def test_a_missing_device_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    assert main(["doctor", "--device", missing]) == 3
    assert f"no usable {missing}" in capsys.readouterr().err


def test_a_machine_that_does_not_learn_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for losses in ([5.5, 5.4], [5.5, float("nan")]):
        monkeypatch.setattr(checks, "_train", lambda *_, losses=losses: losses)
        found = self_test(CPU)
        assert found.state == "fault"
        assert "does not learn" in found.text


def test_a_failing_self_test_is_a_finding_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("kernel image")

    monkeypatch.setattr(checks, "_train", fail)
    assert self_test(CPU).state == "fault"


def test_the_chosen_precision_is_compared_with_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = {torch.float32: 1e11, torch.bfloat16: 4e11}
    monkeypatch.setattr(checks, "matmul_rate", lambda device, dtype, seconds: rates[dtype])
    found = list(speed(CPU))[-1]
    assert found.state == "note"
    assert "bfloat16 was measured faster" in found.text
    rates[torch.bfloat16] = 1e10
    assert list(speed(CPU))[-1].state == "ok"


@pytest.mark.parametrize(
    ("capability", "backend"),
    [((6, 1), "cu126"), ((7, 0), "cu126"), ((5, 2), "cu126"), ((11, 0), "auto")],
)
def test_cards_that_this_build_leaves_out_get_one_command(
    capability: tuple[int, int], backend: str
) -> None:
    found = card_advice(capability, PYPI)
    assert found is not None
    assert found.state == "fault"
    assert found.fix.endswith(f"--torch-backend={backend}")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1)])
def test_cards_that_this_build_covers_get_none(capability: tuple[int, int]) -> None:
    assert card_advice(capability, PYPI) is None


def test_portable_code_covers_later_cards() -> None:
    assert card_advice((13, 0), [*PYPI, "compute_120"]) is None
    assert card_advice((9, 0), ["sm_90a"]) is None


def test_a_card_that_pytorch_does_not_see() -> None:
    assert build_advice(has_card=True, sees_card=True, cuda="13.0") is None
    assert build_advice(has_card=False, sees_card=False, cuda=None) is None
    cpu_build = build_advice(has_card=True, sees_card=False, cuda=None)
    assert cpu_build is not None
    assert "CPU build" in cpu_build.text
    assert cpu_build.fix.startswith("uv pip install")
    old_driver = build_advice(has_card=True, sees_card=False, cuda="13.0")
    assert old_driver is not None
    assert "driver" in old_driver.fix


def test_no_compiler_is_told_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    found = checks.compiling(torch.device("cpu"))
    assert found.state == "note"
    assert "compiler" in found.text


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_PROBE", "#include <no_such_header.h>\n")
    fault = compile_fault(torch.device("cpu"))
    assert "no_such_header.h" in fault or "no C++ compiler" in fault
