from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from sparrowlm.data.sample import sample
from sparrowlm.errors import DataError, RunError

ROWS = [json.dumps({"text": f"row {number} " * (1 + number * 7 % 40)}) for number in range(3000)]


def write(path: Path, rows: list[str]) -> Path:
    content = "".join(row + "\n" for row in rows).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content))
    return path


def unpack(path: Path) -> list[str]:
    content = path.read_bytes()
    match path.suffix:
        case ".gz":
            content = gzip.decompress(content)
        case ".zst":
            reader = zstandard.ZstdDecompressor().decompressobj()
            content = reader.decompress(content)
    return content.decode().splitlines()


@pytest.mark.parametrize("target", [1, 500, 20_000, 100_000])
def test_a_sample_has_the_wanted_size_to_within_a_line(tmp_path: Path, target: int) -> None:
    done = sample(write(tmp_path / "a.jsonl", ROWS), tmp_path / "b.jsonl", target, 42)
    size = (tmp_path / "b.jsonl").stat().st_size
    assert size == done.bytes
    assert target <= size < target + max(map(len, ROWS)) + 1
    assert (done.total_lines, done.lines) == (3000, len(unpack(tmp_path / "b.jsonl")))


def test_lines_keep_their_order_and_the_seed_decides(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    for name, seed in (("b", 42), ("c", 42), ("d", 7)):
        sample(source, tmp_path / f"{name}.jsonl", 50_000, seed)
    first = unpack(tmp_path / "b.jsonl")
    places = [ROWS.index(row) for row in first]
    assert places == sorted(places)
    assert max(places) > 2700  # from all over the file
    assert min(places) < 300
    assert unpack(tmp_path / "c.jsonl") == first
    assert unpack(tmp_path / "d.jsonl") != first


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    sample(source, tmp_path / "small.jsonl", 10_000, 42)
    sample(source, tmp_path / "large.jsonl", 60_000, 42)
    assert set(unpack(tmp_path / "small.jsonl")) < set(unpack(tmp_path / "large.jsonl"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_compression_changes_no_line(tmp_path: Path, name: str) -> None:
    plain, packed = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / name, ROWS)
    sample(plain, tmp_path / "b.jsonl", 40_000, 42)
    sample(packed, tmp_path / f"b{packed.suffixes[0]}{packed.suffix}", 40_000, 42)
    assert unpack(tmp_path / f"b.jsonl{packed.suffix}") == unpack(tmp_path / "b.jsonl")


def test_every_line_is_as_likely(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [json.dumps({"n": n}) for n in range(100, 300)])
    counts = dict.fromkeys(range(100, 300), 0)
    for seed in range(100):
        sample(source, tmp_path / f"{seed}.jsonl", 1100, seed)  # half of it
        for row in unpack(tmp_path / f"{seed}.jsonl"):
            counts[json.loads(row)["n"]] += 1
    assert 40 < min(counts.values()) * 2 < 100 < max(counts.values()) * 2 < 160
    assert sum(counts.values()) == 100 * 100


def test_all_of_a_small_input_is_its_sample(tmp_path: Path) -> None:
    sample(write(tmp_path / "a.jsonl", ROWS), tmp_path / "b.jsonl", 10**9, 42)
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_bad_lines_stop_it_or_are_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*ROWS[:4], "{", "", "[1]", *ROWS[4:]])
    with pytest.raises(DataError, match=r"a\.jsonl:5: not JSON"):
        sample(source, tmp_path / "b.jsonl", 1000, 42)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    done = sample(source, tmp_path / "b.jsonl", 10**9, 42, skip_bad=True)
    assert (done.rejected, done.lines) == (3, 3000)


def test_other_files_and_what_is_there_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match="not named as JSON lines"):
        sample(source, tmp_path / "b.txt", 1000, 42)
    with pytest.raises(RunError, match="exists already"):
        sample(source, source, 1000, 42)


def test_memory_is_that_of_the_sample_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [json.dumps({"text": "x" * 200})] * 100_000)
    tracemalloc.start()
    sample(source, tmp_path / "b.jsonl", 200_000, 42)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # of 21 MB: blocks of the file, and a thousand lines' numbers
