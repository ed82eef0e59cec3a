"""Uploads with the hubs' own clients, to a stand-in on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from export_support import TINY, bpe, make_run
from sparrowlm.cli import main
from sparrowlm.errors import ConfigError, DataError, EnvironmentFault, RunError
from sparrowlm.share.export.writing import export
from sparrowlm.share.push import opened, parcel, push, target_of
from upload_support import TOKEN, Shelf, taking


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and beside it the run it is of."""
    place = tmp_path_factory.mktemp("push")
    make_run(place / "run", TINY, bpe())
    export(place / "run", "hf", place / "out", license="mit")
    return place / "out"


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    # Xet's own protocol is no matter of ours; without it the client uploads large files by LFS.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with taking(Shelf(".safetensors", "tokenizer.json")) as shelf:
        yield shelf


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


HUBS = ("hf", "modelscope")


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("hub", HUBS)
def test_every_file_arrives_and_nobody_else_sees_it(
    shelf: Shelf, folder: Path, hub: str, public: bool
) -> None:
    target = target_of(f"{hub}:owner/name")
    where = push(opened(folder), target, public=public, mirror=shelf.address)
    assert where.startswith(shelf.address)
    assert where.endswith("owner/name")
    assert shelf.files["owner/name"] == content(folder)
    assert shelf.visible == {"owner/name": "public" if public else "private"}
    assert shelf.blobs
    assert shelf.verified()
    if hub == "modelscope":
        assert shelf.licenses == {"owner/name": "mit"}


def test_the_streamed_upload_too(shelf: Shelf, folder: Path, monkeypatch) -> None:
    """What the client does where hf_xet is installed, with files that the hub takes inline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    shelf.large = ("nothing",)
    push(opened(folder), target_of("hf:owner/name"), mirror=shelf.address)
    assert shelf.files["owner/name"] == content(folder)


@pytest.mark.parametrize("hub", HUBS)
def test_again_into_the_same_repository(shelf: Shelf, folder: Path, hub: str) -> None:
    shelf.make("owner/name", "private")
    push(opened(folder), target_of(f"{hub}:owner/name"), mirror=shelf.address)
    assert shelf.files["owner/name"] == content(folder)


@pytest.mark.parametrize("hub", HUBS)
def test_a_public_repository_takes_nothing_by_accident(
    shelf: Shelf, folder: Path, hub: str
) -> None:
    shelf.make("owner/name", "public")
    with pytest.raises(RunError, match="--public"):
        push(opened(folder), target_of(f"{hub}:owner/name"), mirror=shelf.address)
    assert not shelf.files["owner/name"]
    push(opened(folder), target_of(f"{hub}:owner/name"), public=True, mirror=shelf.address)
    assert shelf.files["owner/name"] == content(folder)


def test_no_license_is_claimed(shelf: Shelf, folder: Path) -> None:
    """ModelScope's client would say Apache-2.0 by itself."""
    export(folder.parent / "run", "hf", folder.parent / "unlicensed")
    what = opened(folder.parent / "unlicensed")
    assert what.license == "unknown"
    push(what, target_of("modelscope:owner/name"), mirror=shelf.address)
    assert shelf.licenses == {"owner/name": "other"}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("hub", HUBS)
def test_a_token_that_may_not_write(shelf: Shelf, folder: Path, hub: str, status: int) -> None:
    shelf.status = status
    with pytest.raises(DataError, match="does not let this token write") as refused:
        push(opened(folder), target_of(f"{hub}:owner/name"), mirror=shelf.address)
    assert {"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[hub] in refused.value.fix
    assert TOKEN not in str(refused.value)
    assert not shelf.files


@pytest.mark.parametrize("hub", ["hf", pytest.param("modelscope", marks=pytest.mark.slow)])
def test_a_hub_that_does_not_answer(folder: Path, hub: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    with pytest.raises(EnvironmentFault, match="did not take the upload"):
        push(opened(folder), target_of(f"{hub}:owner/name"), mirror="http://127.0.0.1:9")


def test_addresses() -> None:
    assert target_of("hf:owner/name").repository == "owner/name"
    for wrong in ("owner/name", "hf:owner/name/file", "hf:owner/name@main", "gh:a/b"):
        with pytest.raises(ConfigError):
            target_of(wrong)
    with pytest.raises(DataError):
        target_of("hf:name")


def test_an_export_that_was_changed_stays_here(tmp_path: Path) -> None:
    make_run(tmp_path / "run", TINY, bpe())
    export(tmp_path / "run", "hf", tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="differs from its manifest"), parcel(tmp_path / "out", "hf"):
        pass


def test_the_command_shows_before_it_uploads(shelf: Shelf, folder: Path, capsys) -> None:
    run, mirror = str(folder.parent / "run"), ["--mirror", shelf.address]
    assert main(["push", run, "hf:owner/name", "--dry-run", *mirror]) == 0
    told = capsys.readouterr().out
    assert "to hf:owner/name, private; license: unknown" in told
    assert "model.safetensors" in told
    assert "nothing was uploaded" in told
    assert not shelf.asked
    assert main(["push", run, "hf:owner/name", "--license", "cc0-1.0", *mirror]) == 0
    told = capsys.readouterr().out
    assert "license: cc0-1.0" in told
    assert told.rstrip().endswith(f"{shelf.address}/owner/name")
    words = shelf.files["owner/name"]["README.md"].decode()
    assert 'license: "cc0-1.0"' in words
    assert 'from_pretrained("owner/name")' in words
    assert main(["push", str(folder), "hf:owner/name", "--dtype", "F16", *mirror]) == 2
    assert "is an export already" in capsys.readouterr().err
