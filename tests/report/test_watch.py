"""Runs found and followed, their states, what differs between them, and who may ask."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sparrowlm.config import ModelConfig, Recipe, TrainConfig, dump_recipe
from sparrowlm.errors import EnvironmentFault
from sparrowlm.report.watch import run as watched
from sparrowlm.report.watch import server as serving
from sparrowlm.report.watch.compare import defaults, differences, explained, settings
from sparrowlm.report.watch.run import Moments, progress, state_of
from sparrowlm.report.watch.server import HOST, PAGE, answer, is_local, open_server
from sparrowlm.report.watch.watcher import Watcher, find_runs

MakeRun = Callable[..., Path]


@pytest.fixture
def runs(make_run: MakeRun, tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "line" / "1-pretrain", steps=100)
    return tmp_path / "runs"


def whole(watcher: Watcher) -> dict[str, Any]:
    told = watcher.overview()
    while any(run["behind"] for run in told["runs"]):
        told = watcher.overview()
    return {run["id"]: run for run in told["runs"]}


def test_runs_are_found_where_a_person_keeps_them(runs: Path, tmp_path: Path) -> None:
    assert list(find_runs([runs])) == ["a", "line/1-pretrain"]
    assert list(find_runs([runs / "a"])) == ["a"]
    assert list(find_runs([runs / "a", runs, tmp_path / "nowhere"])) == ["a", "line/1-pretrain"]


def test_two_runs_of_one_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    for parent in ("x", "y"):
        make_run(tmp_path / parent / "a", steps=50)
    assert len(find_runs([tmp_path / "x", tmp_path / "y"])) == 2


def test_a_run_that_begins_while_it_is_watched_appears(make_run: MakeRun, tmp_path: Path) -> None:
    watcher = Watcher([tmp_path / "runs"])
    assert whole(watcher) == {}
    make_run(tmp_path / "runs" / "new", steps=50)
    assert list(whole(watcher)) == ["new"]


def test_the_list_says_what_the_log_says(runs: Path) -> None:
    run = whole(Watcher([runs]))["a"]
    rows = [json.loads(line) for line in (runs / "a" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    held = [row["val_loss"] for row in rows if row["kind"] == "eval"]
    assert run["state"] == "finished"
    assert run["step"] == 640
    assert run["loss"] == pytest.approx(sum(losses[-20:]) / 20)
    assert run["val_loss"] == held[-1]
    assert run["progress"] == 1.0


def test_curves_come_whole_and_then_only_what_is_new(runs: Path) -> None:
    watcher = Watcher([runs])
    whole(watcher)
    first = watcher.series("a", "")
    assert first is not None
    assert first["train"]["start"] == 0
    assert len(first["train"]["columns"]["loss"]["mean"]) == 640
    assert {event["message"] for event in first["events"]} >= {"compiled the step in 11 s"}
    row = {"kind": "train", "step": 641, "loss": 9.0, "seconds": 181.0, "tokens": 1}
    with (runs / "a" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    whole(watcher)
    second = watcher.series("a", first["known"])
    assert second is not None
    assert second["train"]["columns"]["loss"]["mean"][1:] == [9.0]
    assert second["train"]["start"] == 639
    assert second["known"] != first["known"]


def test_a_resumed_run_is_told_from_its_start(runs: Path) -> None:
    watcher = Watcher([runs])
    whole(watcher)
    first = watcher.series("a", "")
    assert first is not None
    log = runs / "a" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    os.truncate(log, sum(map(len, lines[:300])))
    whole(watcher)
    second = watcher.series("a", first["known"])
    assert second is not None
    assert second["train"]["start"] == 0
    assert 250 < len(second["train"]["axes"]["step"]) < 300


@pytest.mark.parametrize(
    "known", ["", "1", "x,y,z", "1,1x,1x", "1,1x99999,1x5", ",,", "1,-1x-1,2x2"]
)
def test_whatever_a_page_claims_to_know_it_gets_an_answer(runs: Path, known: str) -> None:
    watcher = Watcher([runs])
    whole(watcher)
    told = watcher.series("a", known)
    assert told is not None
    assert watcher.series("nobody", known) is None


def rows(*losses: float | None) -> list[dict[str, Any]]:
    return [
        {"loss": loss, "grad_norm": 1.0, "seconds": float(place)}
        for place, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("running", {}),
        ("finished", {"finished": True, "age": 1e6}),
        ("stopped", {"age": 1e6}),
        ("stopped", {"left": True}),
        ("stopped", {"age": None}),
        ("waiting", {"recent": [], "first": {}}),
        ("stopped", {"recent": [], "first": {}, "age": 1e6}),
        ("diverged", {"recent": rows(3.0, None, None, None)}),
        ("running", {"recent": rows(3.0, 3.0, None)}),
        ("diverged", {"recent": rows(9.0, 9.0, 9.0)}),
        ("running", {"recent": rows(9.0, 9.0, 9.0), "of_tokens": False}),
        ("diverged", {"recent": rows(9.0, 9.0), "finished": True}),
    ],
)
def test_states(expected: str, changes: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "finished": False, "left": False, "age": 2.0, "first": {"loss": 4.0},
        "recent": rows(3.0, 2.9, 2.8), "of_tokens": True,
    }  # fmt: skip
    assert state_of(**(usual | changes)) == expected


def test_a_run_of_slow_steps_may_be_silent_for_longer() -> None:
    slow = [{"loss": 3.0, "grad_norm": 1.0, "seconds": 60.0 * place} for place in range(3)]
    usual: dict[str, Any] = {"finished": False, "left": False, "first": {}, "of_tokens": True}
    assert state_of(age=600.0, recent=slow, **usual) == "running"
    assert state_of(age=6000.0, recent=slow, **usual) == "stopped"


def test_how_far_a_run_is() -> None:
    last = {"step": 50, "tokens": 1000, "seconds": 30.0}
    for length, share in (("200 steps", 0.25), ("4000 tokens", 0.25), ("1 minute", 0.5)):
        assert progress({"train": {"length": length}}, last) == share
    for length in ("2 epochs", "soon", 7):
        assert progress({"train": {"length": length}}, last) is None
    assert progress({}, last) is None


def test_samples_are_few_enough_and_the_newest_is_there() -> None:
    moments = Moments()
    for step in range(1000):
        moments.add({"step": step, "prompt": "a", "text": f"{step}\x1b[2J"})
        moments.add({"step": step, "prompt": "b", "text": "x" * (9000 if step == 999 else 1)})
        steps = [moment["step"] for moment in moments.told()]
        assert steps[-1] == step
        assert steps[0] == 0
    assert watched.MOMENTS // 2 <= len(steps) <= watched.MOMENTS + 1
    gaps = {after - before for before, after in pairwise(steps[:-1])}
    assert len(gaps) == 1, "evenly spread"
    last = moments.told()[-1]["texts"]
    assert last[0]["text"] == "999�[2J", "no control character"
    assert len(last[1]["text"]) == watched.TEXT_LENGTH


def test_differences_are_the_settings_that_differ() -> None:
    a = Recipe(train=TrainConfig(seed=1), model=ModelConfig(d_model=64))
    b = Recipe(train=TrainConfig(seed=2), model=ModelConfig(d_model=64))
    found = differences(dump_recipe(a), dump_recipe(b))
    assert [(row.key, row.a, row.b) for row in found] == [("train.seed", "1", "2")]
    assert found[0].meaning == "Of weights, data order and dropout"
    assert differences(dump_recipe(a), dump_recipe(a)) == []
    assert [row.key for row in differences(defaults(), dump_recipe(a))] == [
        "model.d_model",
        "train.seed",
    ]


def test_recipes_of_other_versions_compare_too() -> None:
    found = differences("[train]\nold = 1\n[[data.mix]]\npath = 'x'", "[train]\nnew = 2\n")
    assert {row.key: (row.a, row.b) for row in found} == {
        "train.old": ("1", ""),
        "data.mix[0].path": ('"x"', ""),
        "train.new": ("", "2"),
    }
    assert differences("is no TOML", "") == []


def test_every_setting_is_explained() -> None:
    plain = {key for key in settings(defaults()) if key != "stage"}
    assert plain <= explained().keys()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8100", True), ("127.0.0.1", True), ("localhost:1", True), ("LOCALHOST", True),
        ("[::1]:8100", True), ("[::1]", True), ("", False), ("evil.example", False),
        ("evil.example:8100", False), ("127.0.0.1.evil.example", False), ("localhost:x", False),
        ("127.0.0.1:8100:1", False), ("localhost:", False), ("user@localhost", False),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered(host: str, expected: bool) -> None:
    assert is_local(host) is expected


@pytest.fixture
def port(runs: Path) -> Iterator[int]:
    with open_server(Watcher([runs]), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str, host: str = "localhost", method: str = "GET") -> Any:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    connection.request(method, path, headers={"Host": host})
    found = connection.getresponse()
    content = found.read()
    connection.close()
    return found, content


def test_the_page_is_served_and_may_load_nothing_from_elsewhere(port: int) -> None:
    for path in ("/", *(f"/{name}" for name in PAGE)):
        found, content = get(port, path)
        assert found.status == 200
        assert content
        assert found.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert b"http://" not in content.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in content
        assert b"innerHTML" not in content
    assert get(port, "/", method="HEAD")[1] == b""


def test_every_file_of_the_page_is_served() -> None:
    folder = Path(serving.__file__).parent / "page"
    assert sorted(PAGE) == sorted(path.name for path in folder.iterdir())


def test_another_sites_name_is_refused(port: int) -> None:
    found, content = get(port, "/api/runs", host="evil.example")
    assert found.status == 403
    assert b"runs" not in content


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/../run.py", "/..%2frun.py", "/api", "/api/series?run=../../etc", "/api/samples",
     "/api/difference?a=nobody&b=a", "/index.html/x", "//"],
)  # fmt: skip
def test_what_is_not_there_is_not_there(port: int, path: str) -> None:
    assert (
        get(port, path)[0].status in (200, 404)
        if path == "//"
        else get(port, path)[0].status == 404
    )


def test_nothing_is_taken_in(port: int) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert get(port, "/api/runs", method=method)[0].status == 501


def test_answers_over_http_are_the_watchers(port: int, runs: Path) -> None:
    told = json.loads(get(port, "/api/runs")[1])
    assert [run["id"] for run in told["runs"]] == ["a", "line/1-pretrain"]
    assert json.loads(get(port, "/api/samples?run=a")[1])["moments"][0]["step"] == 1
    assert json.loads(get(port, "/api/difference?a=a&b=line/1-pretrain")[1]) == []
    assert len(json.loads(get(port, "/api/difference?a=a&b=")[1])) > 5


def test_a_taken_port_is_told_or_passed_over(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFault, match="cannot listen"):
        open_server(Watcher([]), port)
    monkeypatch.setattr(serving, "PORT", port)
    with open_server(Watcher([])) as other:
        assert other.server_address[1] != port


def test_a_long_log_is_read_a_little_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparrowlm.report.watch.watcher.AT_ONCE", 0.0)
    monkeypatch.setattr("sparrowlm.report.watch.watcher.CHUNK", 150_000)
    folder = tmp_path / "long"
    folder.mkdir()
    line = '{"kind": "train", "step": %d, "loss": 2.5, "grad_norm": 0.3, "seconds": 1.0}\n'
    (folder / "metrics.jsonl").write_text("".join(line % step for step in range(1, 10_001)))
    watcher = Watcher([tmp_path])
    answers, longest = 0, 0.0
    while True:
        began = time.perf_counter()
        content = answer(watcher, "/api/runs")[2]
        longest = max(longest, time.perf_counter() - began)
        answers += 1
        if not json.loads(content)["runs"][0]["behind"]:
            break
    assert answers > 4
    assert longest < 5.0
    content = answer(watcher, "/api/series?run=long")[2]
    assert json.loads(content)["train"]["axes"]["step"][-1] == 10_000
    assert len(content) < 200_000
