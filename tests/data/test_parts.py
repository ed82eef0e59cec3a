"""Prepared in parts: the same dataset, byte for byte, as in one process."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sparrowlm.config import DataConfig
from sparrowlm.data import parts
from sparrowlm.data.parts import EncodeParts, Job, MergeParts
from sparrowlm.data.prepare import prepare
from sparrowlm.errors import DataError, RunError
from sparrowlm.text.tokenizer import character_tokenizer


def write_corpus(folder: Path) -> str:
    """Five files of rows and one of plain text, of different sizes, beside a hidden one."""
    folder.mkdir()
    (folder / ".hidden").write_text("passed over")
    for number in range(5):
        texts = [f"{number}-{row} the moon\n" * (1 + row % 4) for row in range(60 * number)]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{number}.jsonl").write_text(rows)
    (folder / "6.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\nthree\n")
    return str(folder)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one_process(job: Job, folder: Path) -> dict[str, str]:
    prepare(list(job.inputs), job.load_tokenizer(), folder, replace(job.config, workers=1))
    return contents(folder)


def run(job: Job, world: int) -> dict[str, str]:
    for rank in reversed(range(world)):
        EncodeParts(job)(None, rank, world)
    MergeParts(job)(None, 0, 1)
    return contents(Path(job.out))


@pytest.mark.parametrize("world", [1, 4, 9])
@pytest.mark.parametrize(
    "settings", [{}, {"split": "tail"}, {"val_fraction": 0.0}, {"val_fraction": 0.001}]
)
def test_parts_make_the_dataset_of_one_process(
    tmp_path: Path, world: int, settings: dict[str, object]
) -> None:
    config = DataConfig(**settings)  # pyright: ignore[reportArgumentType]
    job = Job((write_corpus(tmp_path / "in"),), "bytes", str(tmp_path / "out"), config)
    assert run(job, world) == one_process(job, tmp_path / "one")


def test_one_long_document_is_cut_as_in_one_process(tmp_path: Path) -> None:
    """Its side is decided in the merge: no part knows how much there is in all."""
    write_corpus(tmp_path / "in")
    (tmp_path / "in" / "long.txt").write_text("a long story\n" * 20_000)
    job = Job((str(tmp_path / "in"),), "bytes", str(tmp_path / "out"))
    found = run(job, 3)
    assert found == one_process(job, tmp_path / "one")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["split"]["rule"] == "tail"


def test_rejected_rows_are_listed_in_order(tmp_path: Path) -> None:
    folder = Path(write_corpus(tmp_path / "in"))
    for name in ("1.jsonl", "3.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"body": 1}\n{"text": \n')
    job = Job((str(folder),), "bytes", str(tmp_path / "out"), DataConfig(skip_bad=True))
    found = run(job, 2)
    assert "rejected.jsonl" in found
    assert found == one_process(job, tmp_path / "one")


def test_a_second_run_makes_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(write_corpus(tmp_path / "in"))
    job = Job((str(folder),), "bytes", str(tmp_path / "out"))
    made: list[str] = []
    write = parts.write_part

    def counted(job: Job, number: int, *rest: object) -> None:
        made.append(job.sources()[number].path.name)
        write(job, number, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(parts, "write_part", counted)
    EncodeParts(job)(None, 0, 2)
    assert made == ["0.jsonl", "2.jsonl", "4.jsonl"]
    with pytest.raises(DataError, match="3 of 6 parts are missing or older than their source"):
        MergeParts(job)()
    made.clear()
    EncodeParts(job)()  # another number of ranks
    assert made == ["1.jsonl", "3.jsonl", "6.txt"]
    made.clear()
    (folder / "3.jsonl").write_text('{"text": "another"}\n')
    damaged = job.part(4) / "spool-00000.bin"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    EncodeParts(job)()
    assert made == ["3.jsonl", "4.jsonl"]
    made.clear()
    (tmp_path / "chars").mkdir()
    character_tokenizer("".join(map(chr, range(10, 127)))).save(tmp_path / "chars")
    other = replace(job, tokenizer=str(tmp_path / "chars"))
    EncodeParts(other)(None, 0, 6)
    assert made == ["0.jsonl"]
    assert not list(job.parts.glob(".tmp-*"))


def test_a_dataset_that_is_there_is_refused(tmp_path: Path) -> None:
    job = Job((write_corpus(tmp_path / "in"),), "bytes", str(tmp_path / "out"))
    run(job, 1)
    with pytest.raises(RunError, match="exists already"):
        MergeParts(job)()


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    folder = Path(write_corpus(tmp_path / "in"))
    (folder / "2.jsonl").write_text('{"text": "fine"}\n{"texts": "other"}\n')
    job = Job((str(folder),), "bytes", str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"2\.jsonl:2: no key 'text'"):
        EncodeParts(job)()
    assert sorted(path.name for path in job.parts.iterdir()) == ["000000", "000001"]


def test_local_workers_make_the_same_dataset(tmp_path: Path) -> None:
    executor = pytest.importorskip("datatrove.executor", reason="needs the extra: sparrowlm[scale]")
    job = Job((write_corpus(tmp_path / "in"),), "bytes", str(tmp_path / "out"))

    def execute(log: str) -> None:
        encode = executor.LocalPipelineExecutor(
            [EncodeParts(job)], tasks=3, workers=2, logging_dir=str(tmp_path / log / "encode")
        )
        executor.LocalPipelineExecutor(
            [MergeParts(job)], tasks=1, logging_dir=str(tmp_path / log / "merge"), depends=encode
        ).run()

    execute("logs")
    expected = one_process(job, tmp_path / "one")
    assert contents(Path(job.out)) == expected
    times = {path: path.stat().st_mtime_ns for path in job.parts.rglob("*")}
    execute("logs")  # all tasks are done, and nothing is run
    for path in Path(job.out).rglob("*"):
        path.unlink() if path.is_file() else None
    for folder in sorted(Path(job.out).rglob("*"), reverse=True):
        folder.rmdir()
    Path(job.out).rmdir()
    execute("other logs")  # the parts are there: only the merge has work
    assert contents(Path(job.out)) == expected
    assert {path: path.stat().st_mtime_ns for path in job.parts.rglob("*")} == times


def test_the_documented_code_names_what_is_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "large-corpora.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M)
    assert len(blocks) == 3
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparrowlm"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, name.name) for name in node.names)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Job":
            assert {word.arg for word in node.keywords} <= set(Job.__dataclass_fields__)


@pytest.mark.slow
def test_ray_makes_the_same_dataset(tmp_path: Path) -> None:
    executor = pytest.importorskip("datatrove.executor", reason="needs the extra: sparrowlm[scale]")
    ray = pytest.importorskip("ray", reason="needs the extra: sparrowlm[scale]")
    job = Job((write_corpus(tmp_path / "in"),), "bytes", str(tmp_path / "out"))
    options = {"mem_per_cpu_gb": 0.5}
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        encode = executor.RayPipelineExecutor(
            [EncodeParts(job)], tasks=3, logging_dir=str(tmp_path / "encode"), **options
        )
        merge = executor.RayPipelineExecutor(
            [MergeParts(job)], tasks=1, logging_dir=str(tmp_path / "merge"), **options
        )
        encode.run()
        merge.run()
    finally:
        ray.shutdown()
    assert contents(Path(job.out)) == one_process(job, tmp_path / "one")
