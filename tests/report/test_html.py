"""The report stands alone, escapes what others wrote, and makes do with what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparrowlm.config import Recipe
from sparrowlm.errors import RunError
from sparrowlm.report import tables, write_report
from sparrowlm.report.advice import next_commands
from sparrowlm.report.html import page
from sparrowlm.report.read import Run, read_run

MakeRun = Callable[..., Path]
VOID = {"meta", "link", "input"}


class Reader(HTMLParser):
    """Collects tags and attributes, and insists that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert not reader.stack
    return reader


def test_report_makes_no_request_and_runs_no_script(make_run: MakeRun, tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run")).read_text(encoding="utf-8")
    reader = read_page(text)
    assert not reader.tags & {"script", "img", "iframe", "object", "embed", "base", "form"}
    links = [value for _, name, value in reader.attributes if name in ("href", "src", "srcset")]
    assert links == ["data:,"]
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", text)
    assert "url(" not in text
    assert "@import" not in text


def test_report_holds_verdict_curves_samples_settings_machine_and_commands(
    make_run: MakeRun, tmp_path: Path
) -> None:
    text = read_page(page(read_run(make_run(tmp_path / "run")))).text.replace("\xa0", " ")
    for part in (
        "After 3 min 2 s and 640 steps the model needs 1.402 bits per byte",
        "It beats gzip -9 (1.910, passed after 28 s) and xz -9 (1.481, passed after 2 min 35 s)",
        "but not xz primed by the training text (1.352).",
        "Learning rate",
        "Gradient norm",
        "return lines",
        "relu2",
        "AMD EPYC",
        "2,388,172",
        "the gradient is not finite",
        "sparrow generate",
        "--resume",
    ):
        assert part in text


def test_a_run_that_answers_is_to_be_talked_with() -> None:
    run = Path("runs") / "a"
    told = [command for command, _ in next_commands(run, Recipe(stage="sft"))]
    assert told[:2] == [f"sparrow chat {run}", f"sparrow serve {run}"]
    assert next_commands(run)[0][0].startswith(f"sparrow generate {run}")


HOSTILE = '</pre><script>alert(1)</script><img src=x onerror="alert(2)">\x1b[2J\u202e&amp;'


def test_whatever_a_model_or_a_user_wrote_is_text(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "a <b> & 'c' \"d\"",
        steps=20,
        every=10,
        samples=[{"step": 1, "prompt": HOSTILE, "text": HOSTILE, "seconds": 1.0}],
        machine={"machine": {HOSTILE: HOSTILE}, "data": {HOSTILE: {HOSTILE: [HOSTILE]}}},
        metrics=[
            {"kind": "event", "step": 1, "seconds": 1.0, "message": HOSTILE},
            {"kind": "train", "step": HOSTILE, "loss": HOSTILE, "lr": HOSTILE},
        ],
    )
    (folder / "config.toml").write_text(f"{HOSTILE} = 1", encoding="utf-8")
    text = page(read_run(folder))
    reader = read_page(text)
    assert not reader.tags & {"script", "img"}
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert reader.text.count("alert(2)") >= 6


@pytest.mark.parametrize(
    "missing", ["config.toml", "summary.json", "machine.json", "samples.jsonl", "metrics.jsonl"]
)
def test_report_is_written_whatever_is_missing(
    make_run: MakeRun, tmp_path: Path, missing: str
) -> None:
    folder = make_run(tmp_path / "run", steps=30, every=10)
    (folder / missing).unlink()
    text = page(read_run(folder))
    read_page(text)
    assert missing in text


def test_one_step_and_nothing_else(tmp_path: Path) -> None:
    row = {"kind": "train", "step": 1, "loss": 8.7, "bits_per_byte": None, "seconds": 0.4}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row), encoding="utf-8")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    reader = read_page(text)
    assert "After 0.4 s and 1 step the training loss is 8.700" in reader.text.replace("\xa0", " ")
    assert 'class="dot' in text


def test_data_without_a_tokenizer_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=30, every=10)
    rows = read_run(folder)
    bare = [{**row, "bits_per_byte": None} for row in rows.train]
    bare += [{**row, "val_bits_per_byte": None} for row in rows.evals]
    lines = "\n".join(json.dumps(row) for row in bare)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    unknown = {key: None for key in rows.summary if key.endswith("per_byte")}
    summary = json.dumps({**rows.summary, **unknown})
    (folder / "summary.json").write_text(summary, encoding="utf-8")
    told = read_page(page(read_run(folder))).text
    assert "no tokenizer" in told
    assert "Shorter is better" not in told


def test_a_cut_last_line_is_told_and_the_rest_is_read(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=30, every=10)
    whole = len(read_run(folder).train)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind":"train","st')
    run = read_run(folder)
    assert len(run.train) == whole
    assert any("last line of metrics.jsonl is cut off" in fault for fault in run.faults)


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"kind": "train", "step": step, "loss": loss, "grad_norm": float("nan"), "seconds": step}
        for step, loss in ((1, 3.0), (2, None), (3, float("nan")), (4, float("inf")), (5, 2.0))
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    text = write_report(tmp_path).read_text(encoding="utf-8").lower()
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)
    assert ">inf" not in text


def test_thirty_thousand_steps_stay_a_small_page() -> None:
    train = [
        {"step": step, "seconds": step / 10, "loss": 2 + 1 / step, "grad_norm": 1.0, "lr": 1e-3}
        for step in range(1, 30_001)
    ]
    assert len(page(Run(Path("x"), train=train))) < 500_000


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="no such run"):
        write_report(tmp_path / "nothing")


def test_every_setting_that_differs_is_explained() -> None:
    for section in fields(Recipe):
        kind = type(getattr(Recipe(), section.name))
        if is_dataclass(kind):
            meanings = tables.meanings(kind)
            assert meanings.keys() == {field.name for field in fields(kind)}
            assert all(meanings.values())
