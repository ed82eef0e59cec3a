"""Time to nanoGPT's CPU result on Shakespeare's characters, beside nanoGPT itself.

    python benchmarks/charlm.py --data data/tinyshakespeare/tinyshakespeare.txt \\
        --nanogpt ../nanoGPT --rounds 3

Both are run as whole commands from cold, in turn (A B A B …), on the same text: nanoGPT's README
command for a CPU, and `sparrow train recipes/shakespeare-char-cpu.toml`. Preparing the text is
part of neither: nanoGPT's prepare.py has run before, and Sparrow's cache is warm after the first
round, which is not counted. The loss is over the whole held-out split in windows of 64, measured
here for nanoGPT's checkpoint with nanoGPT's own model code, and by Sparrow for its own.

Prints one JSON line. nanoGPT's checkout is read, never changed: its data and output go to a
temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sparrowlm.runtime import machine

RECIPE = Path(__file__).parents[1] / "recipes" / "shakespeare-char-cpu.toml"
# nanoGPT, README.md, "I only have a macbook": the command for a CPU.
NANOGPT_FLAGS = [
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]

# Runs with nanoGPT's checkout as its folder, so that `model` is nanoGPT's.
MEASURE = """
import sys, numpy as np, torch
from model import GPT, GPTConfig
torch.set_grad_enabled(False)
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
ids = torch.from_numpy(np.fromfile(sys.argv[2], dtype=np.uint16).astype(np.int64))
T, total, count = 64, 0.0, 0
n = (len(ids) - 1) // T
x, y = ids[: n * T].view(n, T), ids[1 : n * T + 1].view(n, T)
for i in range(0, n, 64):
    _, loss = model(x[i : i + 64], y[i : i + 64])
    rows = len(x[i : i + 64])
    total, count = total + loss.item() * rows, count + rows
print(total / count)
"""


def main() -> None:
    """Run both in turn and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare.txt")
    parser.add_argument("--nanogpt", type=Path, help="a nanoGPT checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--target", type=float, default=1.898)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        ours, theirs = [], []
        run_sparrow(options.data, work / "warm", work)  # fills the cache of prepared text
        prepared = prepare_nanogpt(options.nanogpt, options.data, work) if options.nanogpt else None
        for number in range(options.rounds):
            ours.append(run_sparrow(options.data, work / f"run{number}", work))
            if prepared is not None:
                theirs.append(run_nanogpt(options.nanogpt, prepared, work / f"out{number}"))
    print(json.dumps(result(options, ours, theirs), ensure_ascii=False))


def result(
    options: argparse.Namespace,
    ours: list[tuple[float, float]],
    theirs: list[tuple[float, float]],
) -> dict[str, object]:
    """What was measured, with its conditions; each pair is (seconds, loss)."""
    told: dict[str, object] = {
        "benchmark": "charlm",
        "machine": machine(),
        "target_loss": options.target,
        "sparrow_seconds": [round(seconds, 1) for seconds, _ in ours],
        "sparrow_loss": [round(loss, 4) for _, loss in ours],
        "reached": all(loss <= options.target for _, loss in ours),
    }
    if theirs:
        ratios = [mine[0] / other[0] for mine, other in zip(ours, theirs, strict=True)]
        told["nanogpt_seconds"] = [round(seconds, 1) for seconds, _ in theirs]
        told["nanogpt_loss"] = [round(loss, 4) for _, loss in theirs]
        told["ratio_median"] = round(statistics.median(ratios), 3)
    return told


def run_sparrow(data: Path, out: Path, work: Path) -> tuple[float, float]:
    """(seconds of the whole command, held-out loss of its last step)."""
    command = [sys.executable, "-m", "sparrowlm", "train", str(RECIPE), "--out", str(out)]
    seconds = timed([*command, "--data.path", str(data.resolve())], work, cache=work / "cache")
    return seconds, json.loads((out / "summary.json").read_text(encoding="utf-8"))["val_loss"]


def prepare_nanogpt(checkout: Path, data: Path, work: Path) -> Path:
    """A copy of the files that nanoGPT runs from, with its data prepared by its own script."""
    home = work / "nanogpt"
    folder = home / "data" / "shakespeare_char"
    folder.mkdir(parents=True)
    for name in ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py"):
        target = home / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((checkout / name).read_bytes())
    prepare = checkout / "data" / "shakespeare_char" / "prepare.py"
    (folder / "prepare.py").write_bytes(prepare.read_bytes())
    (folder / "input.txt").write_bytes(data.read_bytes())
    # The script imports `requests` for a download that input.txt makes unnecessary.
    (folder / "requests.py").write_text("")
    timed([sys.executable, "prepare.py"], folder)
    return home


def run_nanogpt(checkout: Path, home: Path, out: Path) -> tuple[float, float]:
    """(seconds of the whole command, held-out loss of its checkpoint)."""
    seconds = timed(
        [
            sys.executable,
            "train.py",
            "config/train_shakespeare_char.py",
            *NANOGPT_FLAGS,
            f"--out_dir={out}",
            "--always_save_checkpoint=True",
        ],
        home,
    )
    held_out = home / "data" / "shakespeare_char" / "val.bin"
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(out / "ckpt.pt"), str(held_out)],
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    return seconds, float(measured.stdout.split()[-1])  # its model prints its size first


def timed(command: list[str], folder: Path, cache: Path | None = None) -> float:
    """Seconds that a command takes; its output goes nowhere, its failure is told."""
    environment = os.environ | ({"SPARROW_CACHE": str(cache)} if cache else {})
    # Some containers set it; then every start compiles PyTorch's modules again, for eight seconds.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return seconds


if __name__ == "__main__":
    main()
