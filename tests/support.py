"""A small real run to test laws on: the bytes of a Python source file as token ids."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.cli import main
from sparrowlm.config import (
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    SamplesConfig,
    TrainConfig,
    dump_recipe,
)
from sparrowlm.data.shards import Dataset, open_dataset
from sparrowlm.evaluate.corpus import Reading
from sparrowlm.pipeline import load_run
from sparrowlm.runtime import Runtime
from sparrowlm.train.held_out import held_out

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext  # which Windows does not have

TINY = ModelConfig(
    vocab_size=256, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=64, max_seq_len=16
)

# Changes that make experts of it; with one a token, and few tokens, some expert is often idle.
EXPERTS = {"n_experts": 4, "experts_per_token": 1, "d_ff": 32, "norm_topk_prob": False}


def byte_dataset(folder: Path) -> Dataset:
    """`argparse`'s source as a headerless train.bin and val.bin of byte values."""
    content = Path(argparse.__file__).read_bytes()
    ids = np.frombuffer(content, dtype=np.uint8).astype("<u2")
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(ids) * 9 // 10
    (folder / "train.bin").write_bytes(ids[:cut].tobytes())
    (folder / "val.bin").write_bytes(ids[cut : cut + 2000].tobytes())
    return open_dataset(folder)


def tiny_recipe(steps: int = 20, micro_batch_size: int = 8, optimizer: str = "adamw") -> Recipe:
    """Eight rows of sixteen tokens a step."""
    return Recipe(
        model=TINY,
        train=TrainConfig(
            length=f"{steps} steps",
            seq_len=16,
            batch_tokens=128,
            micro_batch_size=micro_batch_size,
            precision="float32",
            compile="off",
            device="cpu",
        ),
        optim=OptimConfig(name=optimizer, lr=1e-2, warmup_steps=3),  # pyright: ignore[reportArgumentType]
        eval=EvalConfig(every="10 steps", micro_batch_size=8),
        samples=SamplesConfig(every=""),
    )


def with_model(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with another shape."""
    return replace(recipe, model=replace(recipe.model, **changes))


class Silent:
    """A display that shows nothing and keeps what it was told of."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def event(self, message: str) -> None:
        self.events.append(message)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def cpu(precision: str = "float32") -> Runtime:
    """This process alone, on the CPU."""
    return Runtime(device=torch.device("cpu"), precision=precision)


def quick(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Runs measure no machine and draw no report, each of which takes half a second, and prepare
    what they read in a cache of their own."""
    patch.setenv("SPARROW_CACHE", str(folder / "cache"))
    patch.setattr("sparrowlm.pipeline.matmul_rate", lambda *_: 1e11)
    patch.setattr("sparrowlm.pipeline.write_report", lambda *_: None)


def write_recipe(folder: Path, **tables: dict[str, object]) -> Path:
    """A recipe file for the command line on `byte_dataset(folder / "data")`, changed as told."""
    byte_dataset(folder / "data")
    recipe = replace(tiny_recipe(), data=replace(Recipe().data, path=(str(folder / "data"),)))
    for table, changes in tables.items():
        recipe = replace(recipe, **{table: replace(getattr(recipe, table), **changes)})
    path = folder / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


def write_parquet(path: Path, table: str) -> None:
    """A table, as Python writes it, in a file. A process of its own writes it: beside PyTorch
    pyarrow crashes on Windows."""
    code = "import sys, datetime, decimal, pyarrow as pa, pyarrow.parquet as pq;"
    code += f"pq.write_table({table}, sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def command(*arguments: object, ranks: int = 1) -> list[str]:
    """The command line of `sparrow …`, under torchrun for several ranks."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [*start, "sparrowlm", *map(str, arguments)]


def run_command(*arguments: object, ranks: int = 1, **environment: str) -> CompletedProcess[str]:
    """Run `sparrow …` to its end and return what it printed; one thread, so that tiny products
    do not pay for two."""
    return subprocess.run(
        command(*arguments, ranks=ranks),
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@cache
def starter() -> ForkServerContext:
    """Starts processes as copies of one that has loaded PyTorch, which is most of what a short run
    takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "matplotlib.figure", "sparrowlm.pipeline", "sparrowlm.cli.show"]
    )
    return context


class Copy(NamedTuple):
    """What a copy of `starter` does: `sparrow …` with one thread."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str = "."
    output: str = os.devnull
    """A file for what it prints."""
    rate: float = 1e11
    """What it believes of the machine instead of measuring for a third of a second; 0: measure."""

    def __call__(self) -> None:
        """Ends this process with the command's exit code."""
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        torch.set_num_threads(1)
        with (
            open(self.output, "w", encoding="utf-8") as told,
            pytest.MonkeyPatch.context() as patch,
        ):
            sys.stdout = sys.stderr = told
            if self.rate:
                patch.setattr("sparrowlm.pipeline.matmul_rate", lambda *_: self.rate)
            sys.exit(main(self.arguments))


def run_copies(*copies: Copy) -> CompletedProcess[str]:
    """Run them side by side to their ends; the first exit code that is not 0, and what all
    printed."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(number)) for number in range(len(copies))]
        processes = [
            starter().Process(target=copy._replace(output=str(file)))
            for copy, file in zip(copies, files, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
        told = "".join(file.read_text("utf-8") for file in files)
    code = next((process.exitcode for process in processes if process.exitcode != 0), 0)
    return CompletedProcess(copies[0].arguments, 1 if code is None else code, told, "")


def run_ranks(*arguments: object, ranks: int) -> CompletedProcess[str]:
    """As `run_command`, by copies of `starter` that find each other as torchrun's processes do.
    Where processes cannot be copied, torchrun starts them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return run_command(*arguments, ranks=ranks)
    line = [str(argument) for argument in arguments]
    if ranks == 1:
        return run_copies(Copy(line, dict(os.environ)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return run_copies(*(Copy(line, dict(os.environ) | shared | place) for place in own))


def measured_again(run: Path) -> dict[str, float | None]:
    """What `sparrow evaluate` says of the split that a run held out."""
    loaded = load_run(run, "cpu", "float32")
    [found] = held_out(find_run(run)[0], loaded.step, loaded.model, loaded.runtime, Reading())
    return {name: figure.value for name, figure in found.figures.items()}


def same_results(one: Path, other: Path) -> None:
    """Assert that two run folders ended alike: weights, optimizer, state and logs, but for
    clocks and for what is told of interruptions."""
    first, second = RunFolder(one), RunFolder(other)
    assert first.steps()[-1] == second.steps()[-1]
    last, end = first.load(first.steps()[-1]), second.load(second.steps()[-1])
    assert last.model.keys() == end.model.keys()
    assert last.trainer.keys() == end.trainer.keys()
    for mine, theirs in ((last.model, end.model), (last.trainer, end.trainer)):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert _timeless(asdict(last.state)) == _timeless(asdict(end.state))
    for log in RunFolder.LOGS:
        rows, others = (
            [_timeless(row) for row in run.rows(log) if row.get("kind") != "event"]
            for run in (first, second)
        )
        assert rows == others


def _timeless(row: dict[str, object]) -> dict[str, object]:
    clocks = ("seconds", "tokens_per_second", "mfu", "memory_bytes", "log_bytes")
    return {key: value for key, value in row.items() if key not in clocks}
