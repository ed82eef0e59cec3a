"""Every kind of source through the commands that read it, and mistakes with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_support import Hub, serving
from sparrowlm.cli import main
from sparrowlm.config import DataConfig, TokenizerConfig, dump_recipe
from sparrowlm.data.shards import open_dataset
from support import tiny_recipe, with_model

TEXTS = [f"row {number} of them, {number * number}\n" * 3 for number in range(200)]


def prepare(out: Path, *arguments: object) -> int:
    return main(
        ["data", "prepare", *map(str, arguments), "--tokenizer", "bytes", "--out", str(out)]
    )


def test_training_on_parquet_from_a_hub_keeps_pyarrow_out(tmp_path: Path) -> None:
    """The whole way, in a process of its own: the usual variable names the hub."""
    recipe = replace(
        with_model(tiny_recipe(steps=2), vocab_size=0),
        data=DataConfig(path=("hf:owner/name",)),
        tokenizer=TokenizerConfig(kind="bytes"),
    )
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    command = ["train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    program = (
        "import sys\nfrom sparrowlm.cli import main\n"
        f"assert main({command!r}) == 0\n"
        "assert 'torch' in sys.modules and 'pyarrow' not in sys.modules\n"
    )
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    with serving(Hub({"a.parquet": (tmp_path / "a.parquet").read_bytes()})) as hub:
        own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
        own |= {"SPARROW_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        own["HF_HUB_OFFLINE"] = "0"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | own,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_folder_of_source_code_is_its_text_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = {
        "src/main.py": b"def main():\n    return 1\n" * 40,
        "src/util.py": b"ONE = 1\n",
        "src/lib/deep.rs": b"fn deep() -> u8 { 1 }\n" * 40,
        "README.md": b"# What it is\n",
        "package.json": b'{"name": "x"}',
        "data/cases.csv": b"a,b\n1,2\n",
        "logo.png": b"\x89PNG\0\0",
        ".git/config": b"[core]",
        "src/__pycache__/main.pyc": b"\0",
        "node_modules/x/index.js": b"var x",
        "target/CACHEDIR.TAG": b"Signature",
        "target/built.rs": b"fn built() {}",
        "env/pyvenv.cfg": b"home",
        "env/lib.py": b"no",
    }
    for name, content in code.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "code" / "loop").symlink_to(tmp_path / "code", target_is_directory=True)
    assert prepare(tmp_path / "out", tmp_path / "code", "--val-fraction", 0) == 0
    shown = capsys.readouterr().out
    assert (
        "passed over: 1 hidden, 4 caches, 1 linked folders, 1 .csv beside source code, 1 binary,"
        " 1 .json beside source code" in shown
    )
    dataset = open_dataset(tmp_path / "out")
    names = [Path(source["path"]).name for source in dataset.description["sources"]]
    assert names == ["README.md", "deep.rs", "main.py", "util.py"]


def test_a_column_is_named_by_the_text_key(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,body\n" + "".join(f'{n},"row, {n}"\n' for n in range(50)))
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "b.parquet")
    out = tmp_path / "out"
    assert prepare(out, tmp_path / "a.csv", tmp_path / "b.parquet", "--text-key", "body") == 0
    assert open_dataset(out).description["accepted"] == 250


def test_bad_rows_of_every_format_are_skipped_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text('text\none\n"open\n')
    (tmp_path / "b.json").write_text('[{"text": "two"}, {"text": 2}]')
    pq.write_table(pa.table({"text": ["three", None]}), tmp_path / "c.parquet")
    out = tmp_path / "out"
    assert prepare(out, tmp_path, "--skip-bad", "--val-fraction", 0) == 0
    assert "3 of 6 rows rejected" in capsys.readouterr().out
    listed = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(Path(row["source"]).name, row["line"]) for row in listed] == [
        ("a.csv", 3), ("b.json", 1), ("c.parquet", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.csv",
            b"title,body\na,b\n",
            "a.csv:2: no column 'text'; it has 'title', 'body' (--text",
        ),
        ("a.csv", b"text\n\xff\n", "a.csv:2: not utf-8"),
        ("a.json", b'[{"text": 1}]', "a.json:1: 'text' is a number, not a string"),
        ("a.json", b'[{"text": "x"}', "a.json:1: the array does not end"),
        ("a.parquet", b"nothing", "a.parquet: cannot be read"),
        ("a.h5", b"nothing", "a.h5: cannot be read"),
        ("a.csv.gz", b"nothing", "a.csv.gz: is damaged"),
    ],
)
def test_mistakes_are_one_message(
    tmp_path: Path, name: str, content: bytes, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert prepare(tmp_path / "out", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_hub_that_lacks_the_dataset_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # other tests may have asked for it
    with serving(Hub({})) as hub:
        assert prepare(tmp_path / "out", "hf:a/b", "--mirror", hub.address) == 2
        assert f"error: hf:a/b: {hub.address} does not have" in capsys.readouterr().err
    assert prepare(tmp_path / "out", "hf:a/b", "--mirror", "mirror.example") == 2
    assert 'error: data.mirror: "mirror.example" is no address' in capsys.readouterr().err
