"""Text to tokens on disk: speed and memory beside the scripts of nanoGPT and of a Pile trainer.

    python benchmarks/prepare.py --data stories.txt --tokenizer tokenizers/gpt2 --megabytes 2000 \\
        --nanogpt ../nanoGPT --pile ../train-llm-from-scratch

The input is one `.jsonl.zst` of real text, cut into documents of about 3,000 characters at line
ends and repeated to the asked size; repetition helps every program's caches alike. All run as whole
commands, in turn (A B A B …), with GPT-2's vocabulary from local files:

- sparrow: `sparrow data prepare`, with the engine it chooses;
- sparrow without gigatoken: the same, where that package cannot be imported;
- nanogpt: `data/openwebtext/prepare.py` itself, `load_dataset` answering with this input; needs
  the `datasets` package, and writes fewer batches where the input has fewer documents;
- pile: `scripts/data_preprocess.py` of FareedKhan-dev/train-llm-from-scratch itself, which writes
  to HDF5; needs `h5py`.

Speed is megabytes of the text's UTF-8 a second of wall time, start included; memory is the
largest sum over a command's processes of what each holds for itself (PSS where the kernel tells,
else RSS), looked at five times a second. Linux. Prints one JSON line. The checkouts are read, never
changed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

from sparrowlm.runtime import machine
from sparrowlm.text.documents import Document, find_inputs, read_documents

BATCHES = "total_batches = 1024"
DOCUMENT = 3000  # characters
# Runs nanoGPT's script on another input; it writes beside itself, so it is a copy.
NANOGPT = """
import runpy, sys, datasets
load = datasets.load_dataset
datasets.load_dataset = lambda name, num_proc=None: load("json", data_files=sys.argv[2])
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@dataclass(frozen=True)
class Input:
    """What every program is given."""

    path: Path
    bytes: int  # of the text in UTF-8
    documents: int


@dataclass(frozen=True)
class Taken:
    """What one run of a command took."""

    seconds: float
    cpu_seconds: float
    memory_bytes: int
    tokens: int


def main() -> None:
    """Run all in turn and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, help="text; may be given again")
    parser.add_argument("--tokenizer", type=Path, required=True, help="GPT-2's tiktoken cache")
    parser.add_argument("--megabytes", type=float, default=50.0, help="of text")
    parser.add_argument("--workers", type=int, default=0, help="of sparrow; 0: as it decides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nanogpt", type=Path, help="a nanoGPT checkout")
    parser.add_argument("--pile", type=Path, help="a train-llm-from-scratch checkout")
    parser.add_argument("--python", default=sys.executable, help="that runs the other projects")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        given = write_input(options.data, work / "in" / "text.jsonl.zst", options.megabytes * 1e6)
        programs = programs_of(options, given, work)
        taken: dict[str, list[Taken]] = {program: [] for program in programs}
        for number in range(options.rounds):
            for program, run in programs.items():
                folder = work / f"{program}-{number}"
                folder.mkdir()
                taken[program].append(run(folder))
    print(json.dumps(result(options, given, taken)))


def write_input(paths: list[str], path: Path, size: float) -> Input:
    """Repeat the documents of some files up to `size` bytes of text."""
    files = find_inputs(paths)
    rows = [row.text for file in files for row in read_documents(file) if isinstance(row, Document)]
    texts = [piece for text in rows for piece in cut(text)]
    path.parent.mkdir()
    written = documents = 0
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        while written < size:
            text = texts[documents % len(texts)]
            packed.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            written += len(text.encode())
            documents += 1
    return Input(path, written, documents)


def cut(text: str) -> list[str]:
    """A text in documents of about DOCUMENT characters, cut at line ends."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + DOCUMENT) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return pieces


def programs_of(
    options: argparse.Namespace, given: Input, work: Path
) -> dict[str, Callable[[Path], Taken]]:
    """Name to one run in an empty folder."""
    blocked = work / "blocked"
    blocked.mkdir()
    (blocked / "gigatoken.py").write_text('raise ImportError("left out of this run")\n')
    cache = {"TIKTOKEN_CACHE_DIR": str(options.tokenizer.resolve())}

    def sparrow(folder: Path, **environment: str) -> Taken:
        command = [sys.executable, "-m", "sparrowlm", "data", "prepare", str(given.path)]
        command += ["--tokenizer", str(options.tokenizer.resolve()), "--out", str(folder / "out")]
        taken = watch([*command, "--workers", str(options.workers)], folder, environment)
        return counted(taken, list((folder / "out").glob("*.bin")))

    def nanogpt(folder: Path) -> Taken:
        script = folder / "prepare.py"
        code = (options.nanogpt / "data" / "openwebtext" / "prepare.py").read_text(encoding="utf-8")
        # Its 1,024 batches need as many held-out documents, which OpenWebText has.
        assert BATCHES in code
        script.write_text(code.replace(BATCHES, "total_batches = min(1024, len(dset))"))
        own = cache | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
        command = [options.python, "-c", NANOGPT, str(script), str(given.path)]
        return counted(watch(command, folder, own), list(folder.glob("*.bin")))

    def pile(folder: Path) -> Taken:
        (folder / "none").mkdir()
        script = (options.pile / "scripts" / "data_preprocess.py").resolve()
        command = [options.python, str(script), "--train_dir", str(given.path.parent)]
        command += ["--val_dir", str(folder / "none"), "--out_train_file", str(folder / "t.h5")]
        command += ["--out_val_file", str(folder / "v.h5"), "--tokenizer_name", "gpt2"]
        return watch([*command, "--max_data", str(given.documents)], folder, cache)

    programs: dict[str, Callable[[Path], Taken]] = {"sparrow": sparrow}
    others = f"{blocked}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    programs["sparrow_without_gigatoken"] = lambda folder: sparrow(folder, PYTHONPATH=others)
    programs |= {"nanogpt": nanogpt} if options.nanogpt else {}
    programs |= {"pile": pile} if options.pile else {}
    return programs


def watch(command: list[str], folder: Path, environment: dict[str, str]) -> Taken:
    """Run a command to its end; what it says is told where it fails."""
    before, began = cpu_seconds(), time.perf_counter()
    with (folder / "said.txt").open("w+") as said:
        run = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=said, stderr=said
        )
        most = 0
        while run.poll() is None:
            most = max(most, sum(map(memory_of, tree(run.pid))))
            time.sleep(0.2)
        seconds = time.perf_counter() - began
        if run.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{said.read()[-3000:]}")
    return Taken(seconds, cpu_seconds() - before, most, 0)


def counted(taken: Taken, files: list[Path]) -> Taken:
    """With the tokens in files of uint16."""
    tokens = sum(np.memmap(path, "<u2", mode="r").size for path in files)
    return Taken(taken.seconds, taken.cpu_seconds, taken.memory_bytes, tokens)


def cpu_seconds() -> float:
    """Of all children that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tree(root: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it has ended
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def memory_of(process: int) -> int:
    """Bytes that a process holds; pages that several share are shared out among them."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = Path(f"/proc/{process}/{name}").read_text().splitlines()
        except OSError:
            continue
        values = [int(line.split()[1]) * 1024 for line in lines if line.startswith(key)]
        if values:
            return values[0]
    return 0


def result(
    options: argparse.Namespace, given: Input, taken: dict[str, list[Taken]]
) -> dict[str, object]:
    """What was measured, with its conditions; medians over the rounds, the largest memory."""
    shown: dict[str, object] = {}
    for program, runs in taken.items():
        seconds = statistics.median(run.seconds for run in runs)
        cpu = statistics.median(run.cpu_seconds for run in runs)
        shown[program] = {
            "megabytes_per_second": round(given.bytes / 1e6 / seconds, 2),
            "megabytes_per_cpu_second": round(given.bytes / 1e6 / cpu, 2),
            "peak_memory_bytes": max(run.memory_bytes for run in runs),
            "tokens": runs[0].tokens or None,
        }
    return {
        "benchmark": "prepare",
        "machine": machine(),
        "conditions": {
            "bytes": given.bytes,
            "documents": given.documents,
            "files": options.data,
            "rounds": options.rounds,
            "workers": options.workers,
            "load": round(os.getloadavg()[0], 2),
        },
        **shown,
    }


if __name__ == "__main__":
    main()
