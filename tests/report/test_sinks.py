"""Rows reach the trackers that a recipe names, and no tracker ends a run."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import Recipe, ReportConfig, dump_recipe, load_recipe
from sparrowlm.config.schema import Sinks
from sparrowlm.errors import ConfigError
from sparrowlm.pipeline import train
from sparrowlm.report import sinks
from sparrowlm.report.sinks import SINKS, forwarding, identity, tagged
from support import byte_dataset, tiny_recipe


class Silent:
    """A display that remembers what happened."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[str] = []

    def start(self, plan: list[str], *, total_steps: int, seconds: float) -> None:
        self.calls.append("start")

    def step(self, row: dict[str, Any]) -> None:
        self.calls.append("step")

    def evaluation(self, row: dict[str, Any]) -> None:
        self.calls.append("evaluation")

    def sample(self, prompt: str, text: str) -> None:
        self.calls.append("sample")

    def event(self, message: str) -> None:
        self.events.append(message)

    def finish(self, summary: dict[str, Any]) -> None:
        self.calls.append("finish")


class Broken:
    """Raises in one of its methods, with a message of two lines."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.rows: list[int] = []
        self._maybe("opening")

    def _maybe(self, place: str) -> None:
        if self.place == place:
            raise RuntimeError(f"the tracker\nfails at {place}")

    def start(self, config: Mapping[str, Any]) -> None:
        self._maybe("start")

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append(step)
        if step == 3:
            self._maybe("row")

    def finish(self) -> None:
        self._maybe("finish")


def with_sinks(recipe: Recipe, *names: str) -> Recipe:
    return replace(recipe, report=ReportConfig(sinks=names))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    byte_dataset(tmp_path / "data")

    def run(recipe: Recipe, display: Any = None, name: str = "run", **options: Any) -> Path:
        folder = tmp_path / name
        train(recipe, folder, display or Silent(), dataset_folder=tmp_path / "data", **options)
        return folder

    return run


def log(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in RunFolder(folder).rows("metrics.jsonl") if row["kind"] == kind]


def test_every_name_of_the_schema_has_its_sink() -> None:
    assert tuple(SINKS) == get_args(Sinks)


def test_names_are_checked_like_any_setting(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(with_sinks(Recipe(), "wandb", "trackio")), encoding="utf-8")
    assert load_recipe(path).report.sinks == ("wandb", "trackio")
    path.write_text('[report]\nsinks = ["wandbb"]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="tensorboard, wandb, swanlab, trackio"):
        load_recipe(path)


def make(place: str, made: list[Broken]) -> Callable[[Path, int], Any]:
    def build(run: Path, step: int) -> Broken:
        made.append(Broken(place))
        return made[-1]

    return build


@pytest.mark.parametrize("place", ["opening", "start", "row", "finish"])
def test_a_sink_that_raises_is_switched_off_and_named(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: list[Broken] = []
    whole: list[Broken] = []
    both = {"wandb": make(place, broken), "trackio": make("never", whole)}
    monkeypatch.setattr(sinks, "SINKS", both)
    display, logged = Silent(), []
    recipe = with_sinks(Recipe(), "wandb", "trackio")
    with forwarding(display, recipe, Path("x"), 0, logged.append) as told:
        told.start([], total_steps=6, seconds=0.0)
        for step in range(1, 7):
            told.step({"kind": "train", "step": step, "seconds": step / 4, "loss": 3.0})
        told.evaluation({"kind": "eval", "step": 6, "seconds": 1.5, "val_loss": 3.0})
        told.finish({})
    assert display.calls == ["start", *["step"] * 6, "evaluation", "finish"]
    assert whole[0].rows == [1, 2, 3, 4, 5, 6, 6], "the other goes on"
    message = f"sink wandb is off from here on: RuntimeError: the tracker fails at {place}"
    assert display.events == [message]
    assert [row["message"] for row in logged] == [message]
    if place == "row":
        assert broken[0].rows == [1, 2, 3], "it is not asked again"
        assert logged[0] == {"kind": "event", "step": 3, "seconds": 0.75, "message": message}


def test_a_package_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name)
    )
    display = Silent()
    with forwarding(display, with_sinks(Recipe(), "wandb"), Path("x"), 0, print) as told:
        told.start([], total_steps=1, seconds=0.0)
    assert len(display.events) == 1
    assert 'pip install "sparrowlm[wandb]"' in display.events[0]


def test_nothing_is_in_between_unless_named() -> None:
    display = Silent()
    with forwarding(display, Recipe(), Path("nowhere"), 0, print) as same:
        assert same is display


def test_sinks_are_closed_where_a_run_ends_by_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Counting(Broken):
        def finish(self) -> None:
            closed.append(self)

    monkeypatch.setattr(sinks, "SINKS", {"wandb": lambda run, step: Counting("never")})

    def interrupted() -> None:
        with forwarding(Silent(), with_sinks(Recipe(), "wandb"), Path("x"), 0, print) as display:
            display.start([], total_steps=1, seconds=0.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(closed) == 1


def test_an_identity_stays(tmp_path: Path) -> None:
    first = identity(tmp_path / "a")
    assert identity(tmp_path / "a") == first
    assert identity(tmp_path / "b") != first
    assert len(first) == 21


def test_whole_measurements_are_apart_from_windows() -> None:
    row = {"kind": "eval_whole", "step": 9, "val_loss": 3.0, "val_bits_per_byte": None, "tokens": 4}
    assert tagged(row) == {"whole/loss": 3.0}


def tensorboard_scalars(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "sinks" / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return read


def test_tensorboard_reads_what_it_was_told(tmp_path: Path) -> None:
    sink = sinks.TensorBoard(tmp_path, 0)
    sink.start({"train.seed": 1337})
    for step in range(1, 9):
        sink.row(step, {"train/loss": 1 / step})
    sink.row(8, {"val/loss": 0.5})
    sink.finish()
    again = sinks.TensorBoard(tmp_path, 5)  # resumed: 6 to 8 are done once more
    again.start({"train.seed": 1337})
    again.row(6, {"train/loss": 6.0})
    again.finish()
    read = tensorboard_scalars(tmp_path)
    found = [(point.step, point.value) for point in read.Scalars("train/loss")]
    assert found == [*((step, pytest.approx(1 / step)) for step in range(1, 6)), (6, 6.0)]
    assert b"| train.seed | `1337` |" in read.Tensors("config")[0].tensor_proto.string_val[0]


@pytest.mark.slow
def test_tensorboard_reads_what_the_log_says_beside_a_sink_that_fails(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a resumed run as one: what was written behind its checkpoint is gone in both."""
    monkeypatch.setitem(sinks.SINKS, "wandb", make("row", []))
    recipe = with_sinks(tiny_recipe(12), "tensorboard", "wandb")
    asked = iter([False] * 6 + [True] * 99)
    folder = trained(recipe, should_stop=lambda: next(asked))
    assert [row["message"][:14] for row in log(folder, "event")] == ["sink wandb is "]
    stopped = log(folder, "train")[-1]["step"]
    assert 3 < stopped < 12
    # As if it had gone on for two steps that no checkpoint has.
    late = sinks.TensorBoard(folder, 0)
    for step in (stopped + 1, stopped + 2):
        late.row(step, {"train/loss": 99.0})
    late.finish()
    trained(recipe, resume=True)
    read = tensorboard_scalars(folder)
    found = [(point.step, point.value) for point in read.Scalars("train/loss")]
    assert found == [(row["step"], pytest.approx(row["loss"])) for row in log(folder, "train")]
    assert [step for step, _ in found] == list(range(1, 13))
    held_out = {row["step"]: row["val_loss"] for row in log(folder, "eval")}
    scalars = {point.step: point.value for point in read.Scalars("val/loss")}
    assert scalars == pytest.approx(held_out)
    assert "train/bits_per_byte" not in read.Tags()["scalars"], "without a tokenizer it is unknown"
    config = read.Tensors("config")[0].tensor_proto.string_val[0]
    assert b"| optim.lr | `0.01` |" in config


@pytest.mark.slow
def test_wandb_keeps_a_run_without_an_account(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (extra wandb)")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    display = Silent()
    folder = trained(with_sinks(tiny_recipe(4), "wandb"), display)
    assert display.events == []
    [kept] = (folder / "sinks" / "wandb").rglob("*.wandb")
    assert kept.parent.name.startswith("offline-run-")
    end = time.monotonic() + 20
    while b"val/loss" not in kept.read_bytes() and time.monotonic() < end:
        time.sleep(0.05)  # a process of its own writes it
    content = kept.read_bytes()
    assert b"train/loss" in content
    assert b"val/loss" in content
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


@pytest.mark.slow
def test_swanlab_keeps_a_run_without_an_account(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("swanlab", reason="swanlab is not installed (extra swanlab)")
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    display = Silent()
    folder = trained(with_sinks(tiny_recipe(4), "swanlab"), display)
    assert display.events == []
    kept = [path for path in (folder / "sinks" / "swanlab").rglob("*") if path.is_file()]
    assert any(b"train/loss" in path.read_bytes() for path in kept)


@pytest.mark.slow
def test_trackio_keeps_a_run_without_an_account(
    trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is loaded
    pytest.importorskip("trackio", reason="trackio is not installed (extra trackio)")
    display = Silent()
    trained(with_sinks(tiny_recipe(4), "trackio"), display)
    assert display.events == []
    kept = [path for path in (tmp_path / "trackio").rglob("*") if path.is_file()]
    assert any(b"train/loss" in path.read_bytes() for path in kept)
