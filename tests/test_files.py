"""What reaches the disk is whole, and what is foreign is opened with care."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from sparrowlm import files
from sparrowlm.errors import DataError, EnvironmentFault, RunError


def test_publish_shows_nothing_before_it_is_whole(tmp_path):
    final = tmp_path / "result"
    with files.publish(final) as work:
        (work / "a.bin").write_bytes(b"abc")
        assert not final.exists()
    assert (final / "a.bin").read_bytes() == b"abc"
    files.verify(final)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_publish_leaves_nothing_after_a_fault(tmp_path):
    def fail():
        with files.publish(tmp_path / "result") as work:
            (work / "a.bin").write_bytes(b"abc")
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_publish_replaces_only_when_told(tmp_path):
    final = tmp_path / "result"
    for content in (b"one", b"two"):
        with files.publish(final, replace=True) as work:
            (work / "a").write_bytes(content)
    assert (final / "a").read_bytes() == b"two"
    with pytest.raises(RunError, match="exists already"), files.publish(final):
        pass


@pytest.mark.parametrize("damage", ["change", "cut", "remove"])
def test_verify_finds_any_damage(tmp_path, damage):
    with files.publish(tmp_path / "r") as work:
        (work / "a").write_bytes(b"content")
    victim = tmp_path / "r" / "a"
    match damage:
        case "change":
            victim.write_bytes(b"contemt")
        case "cut":
            victim.write_bytes(b"conte")
        case "remove":
            victim.unlink()
    with pytest.raises(RunError):
        files.verify(tmp_path / "r")


def test_a_full_disk_is_one_clear_message(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.json").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="no space left") as caught:
        files.write_text(tmp_path / "a.json", "after")
    assert caught.value.exit_code == 3
    assert (tmp_path / "a.json").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_sweep_removes_what_killed_writers_left(tmp_path):
    (tmp_path / f"{files.TEMPORARY}x").mkdir()
    (tmp_path / f"{files.TEMPORARY}x" / "a").write_text("half")
    (tmp_path / f"{files.TEMPORARY}y").write_text("half")
    (tmp_path / "kept").write_text("whole")
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_literals_is_read(tmp_path, protocol):
    meta = {"vocab_size": 65, "stoi": {"a": 0}, "itos": {0: "a"}, "more": [1.5, None, (True,)]}
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta, protocol=protocol))
    assert files.read_foreign(path) == meta


class Hostile:
    """Asks to run a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, protocol):
    trace = tmp_path / "was-here"
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps({"stoi": Hostile(trace)}, protocol=protocol))
    with pytest.raises(DataError, match="asks to run code"):
        files.read_foreign(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", b"\x80\x04K\x01", b"\x80\x04h\x05.", b"K\x01(K\x02e."]
)
def test_what_is_no_pickle_is_refused(tmp_path, content):
    path = tmp_path / "meta.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError):
        files.read_foreign(path)
