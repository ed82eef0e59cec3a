"""Hubs: their own clients against a hub on this machine."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_support import Hub, serving
from sparrowlm.config.schema import DataConfig
from sparrowlm.data import hub as hub_module
from sparrowlm.data.hub import fetch, parse_address
from sparrowlm.data.prepare import prepare
from sparrowlm.data.shards import open_dataset
from sparrowlm.errors import ConfigError, DataError, EnvironmentFault
from sparrowlm.text.tokenizer import byte_tokenizer

FILES = {
    ".gitattributes": b"*.parquet",
    "README.md": b"# About",
    "dataset_infos.json": b"{}",
    "a.jsonl": b"".join(b'{"text": "line %d"}\n' % number for number in range(60)),
    "books.txt.gz": gzip.compress(b"once"),
    "code.py": b"pass",
    "p/b.csv.gz": gzip.compress(b"text,id\n" + b"".join(b"cell %d,1\n" % n for n in range(60))),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # other tests may have asked for it
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries of a silent host
    with serving(Hub(FILES)) as here:
        yield here


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("kind", ["hf", "modelscope"])
def test_addresses_name_files_folders_patterns_or_everything(hub: Hub, kind: str) -> None:
    for address, expected in [
        ("", ["a.jsonl", "b.csv.gz"]),
        ("/a.jsonl", ["a.jsonl"]),
        ("/p", ["b.csv.gz"]),
        ("/*.jsonl", ["a.jsonl"]),
        ("/README.md", ["README.md"]),
        ("/books.txt.gz", ["books.txt.gz"]),
        ("/code.py", ["code.py"]),
    ]:
        found = fetch(f"{kind}:owner/name{address}", hub.address)
        assert names(found) == expected
        assert all(path.read_bytes() in FILES.values() for path in found)
    passed_over: Counter[str] = Counter()
    fetch(f"{kind}:owner/name", hub.address, passed_over)
    assert passed_over == {"of owner/name without text": 5}


def test_a_configuration_is_read_from_the_card(hub: Hub) -> None:
    assert names(fetch("hf:owner/name/poems", hub.address)) == ["b.csv.gz"]


def test_a_revision_is_asked_for(hub: Hub) -> None:
    fetch("hf:owner/name/a.jsonl@refs/convert/x", hub.address)
    assert any("refs/convert/x" in asked for asked in hub.asked)
    assert parse_address("modelscope:a/b@v1").revision == "v1"


def test_a_file_is_fetched_once_and_then_read_without_the_hub(hub: Hub) -> None:
    first = fetch("hf:owner/name/a.jsonl", hub.address)
    hub.files = {}
    hub.refusals["owner/name"] = (503, "")
    assert fetch("hf:owner/name/a.jsonl", hub.address) == first
    assert sum(asked.startswith("GET") for asked in hub.asked) == 1


@pytest.mark.parametrize("kind", ["hf", "modelscope"])
def test_a_dataset_is_prepared_from_files_of_several_formats(
    hub: Hub, tmp_path: Path, kind: str
) -> None:
    config = DataConfig(mirror=hub.address, workers=1)
    summary = prepare([f"{kind}:owner/name"], byte_tokenizer(), tmp_path / "out", config)
    assert (summary.accepted, summary.rejected) == (120, 0)
    assert "passed over: 5 of owner/name without text" in summary.notes
    assert b"cell 7" in (open_dataset(tmp_path / "out").train_bytes() or b"")


@pytest.mark.parametrize("kind", ["hf", "modelscope"])
def test_what_a_hub_does_not_have_is_told_with_its_name(hub: Hub, kind: str) -> None:
    with pytest.raises(DataError, match=f"{hub.address} does not have"):
        fetch(f"{kind}:owner/other", hub.address)
    with pytest.raises(DataError, match=f"{hub.address} does not have"):
        fetch(f"{kind}:owner/name/absent.jsonl", hub.address)
    with pytest.raises(DataError, match="no file, folder or configuration 'q'") as caught:
        fetch(f"{kind}:owner/name/q", hub.address)
    assert "a.jsonl" in caught.value.fix


def test_a_gated_dataset_says_what_to_accept_and_set(hub: Hub) -> None:
    hub.refusals["owner/name"] = (403, "GatedRepo")
    for address in ("hf:owner/name", "hf:owner/name/a.jsonl"):
        with pytest.raises(DataError, match="accepted its terms") as caught:
            fetch(address, hub.address)
        assert "HF_TOKEN" in caught.value.fix


@pytest.mark.parametrize(
    ("address", "variable"),
    [
        ("hf:owner/name", "HF_ENDPOINT"),
        ("hf:owner/name/a.jsonl", "HF_ENDPOINT"),
        ("modelscope:owner/name", "MODELSCOPE_ENDPOINT"),
    ],
)
def test_a_silent_host_is_named_with_what_to_set(hub: Hub, address: str, variable: str) -> None:
    silent = "http://127.0.0.1:9"
    with pytest.raises(EnvironmentFault, match=f"{silent} does not answer") as caught:
        fetch(address, silent)
    assert variable in caught.value.fix
    assert "data.mirror" in caught.value.fix


@pytest.mark.parametrize(
    ("kind", "variable"), [("hf", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT")]
)
def test_the_usual_variable_names_the_host(
    hub: Hub, tmp_path: Path, kind: str, variable: str
) -> None:
    program = (
        "from sparrowlm.data.hub import fetch\n"
        f"assert [path.name for path in fetch('{kind}:owner/name/p')] == ['b.csv.gz']"
    )
    own = {variable: hub.address, "HF_HOME": str(tmp_path / "home")}
    own["HF_HUB_OFFLINE"] = "0"
    subprocess.run([sys.executable, "-c", program], env=os.environ | own, check=True)


def test_mistaken_addresses_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="hf:squad: names no dataset"):
        fetch("hf:squad")
    with pytest.raises(ConfigError, match=r"data\.mirror: \"mirror.example\" is no address"):
        fetch("hf:owner/name", "mirror.example")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs huggingface_hub, which is not installed"):
        fetch("hf:owner/name")


def test_texts_are_taken_where_there_are_no_rows() -> None:
    assert hub_module.data_files(["README.md", "a.txt", "b.png", ".x/c.txt"]) == ["a.txt"]
    assert hub_module.data_files(["a.txt.zst", "b.png.gz"]) == ["a.txt.zst"]


def test_settings_beside_rows_or_texts_are_no_rows() -> None:
    assert hub_module.data_files(["config.json", "train.txt"]) == ["train.txt"]
    assert hub_module.data_files(["config.json", "p/a.csv.gz", "b.txt"]) == ["p/a.csv.gz"]
    assert hub_module.data_files(["a.json", "b.json.gz", "about.md"]) == ["a.json", "b.json.gz"]
    assert hub_module.data_files(["a.json", "requirements.txt"]) == ["a.json"]
