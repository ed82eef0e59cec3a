"""What `sparrow doctor` looks at: each check is a function that returns findings."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sparrowlm import files
from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import DataConfig, ModelConfig, OptimConfig, Recipe, TrainConfig
from sparrowlm.config.units import show_bytes, show_duration
from sparrowlm.data.shards import open_dataset
from sparrowlm.errors import SparrowError
from sparrowlm.runtime import (
    Runtime,
    best_precision,
    cache_folder,
    cpu_has_bf16,
    machine,
    matmul_rate,
    memory_bytes,
)
from sparrowlm.train.build import build, resolve_recipe
from sparrowlm.train.compiler import compile_fault
from sparrowlm.train.sitting import snapshot

State = Literal["ok", "note", "fault"]
OLDEST_TORCH = (2, 11)
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 2 * 10**9, 5 * 10**9, 5 * 10**8


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    text: str
    state: State = "ok"  # a note is worth knowing; a fault makes the machine unhealthy
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def all_checks(runtime: Runtime) -> Iterator[Finding]:
    """Every check in the order in which a person reads them."""
    yield from versions()
    yield from devices()
    yield memory()
    yield from speed(runtime)
    yield compiling(runtime.device)
    yield from disk()
    yield from extras()
    yield Finding("network", "not needed: nothing is downloaded, and no account is asked for")
    yield self_test(runtime)


def versions() -> Iterator[Finding]:
    """Sparrow, Python, PyTorch, the system."""
    facts = {
        "sparrow": importlib.metadata.version("sparrowlm"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    text = "Sparrow {sparrow}, Python {python}, PyTorch {torch}, {system}".format(**facts)
    yield Finding("versions", text, facts=facts)
    if parsed := re.match(r"(\d+)\.(\d+)", torch.__version__):
        found = (int(parsed[1]), int(parsed[2]))
        if found < OLDEST_TORCH:
            yield Finding(
                "PyTorch",
                f"{torch.__version__} is older than {'.'.join(map(str, OLDEST_TORCH))}",
                "fault",
                "uv pip install --upgrade torch",
            )


def devices() -> Iterator[Finding]:
    """The processor, then each accelerator, then what a wrong build of PyTorch hides."""
    facts = machine()
    levels = [torch.backends.cpu.get_cpu_capability()]
    levels += ["bf16 products"] if cpu_has_bf16() else []
    cores = os.cpu_count() or 0
    text = f"{facts['processor']}, {cores} cores, {facts['threads']} threads, {', '.join(levels)}"
    yield Finding(
        "processor",
        text,
        facts={**facts, "cores": cores, "capability": levels[0], "bf16": cpu_has_bf16()},
    )
    for index in range(torch.cuda.device_count()):
        yield _card(index)
    if torch.backends.mps.is_available():
        yield Finding("accelerator", "Apple GPU (mps)", facts={"mps": True})
    advice = build_advice(
        has_card=torch.cuda.is_available() or shutil.which("nvidia-smi") is not None,
        sees_card=torch.cuda.is_available(),
        cuda=torch.version.cuda,
    )
    if advice is not None:
        yield advice


def _card(index: int) -> Finding:
    facts = torch.cuda.get_device_properties(index)
    capability = (facts.major, facts.minor)
    fault = card_advice(capability, torch.cuda.get_arch_list())
    told = f"{facts.name}, {show_bytes(facts.total_memory)}, compute capability "
    told += f"{facts.major}.{facts.minor}, {best_precision(torch.device('cuda', index))}"
    known = {
        "name": facts.name,
        "memory_bytes": facts.total_memory,
        "capability": list(capability),
    }
    name = f"cuda:{index}"
    if fault is not None:
        return replace(fault, name=name, text=f"{told}; {fault.text}", facts=known)
    return Finding(name, told, facts=known)


def build_advice(*, has_card: bool, sees_card: bool, cuda: str | None) -> Finding | None:
    """What to do where a card is there and this PyTorch does not see it.

    Args:
        has_card: NVIDIA's driver is installed.
        sees_card: PyTorch can use it.
        cuda: the CUDA version of this PyTorch; None is a CPU build, as PyPI's is on Windows.
    """
    if sees_card or not has_card:
        return None
    if cuda is None:
        why = (
            "this PyTorch is a CPU build, as PyPI's is on Windows"
            if _on_windows()
            else ("this PyTorch is a CPU build")
        )
        return Finding("NVIDIA card", f"not used: {why}", "fault", reinstall("auto"))
    return Finding(
        "NVIDIA card",
        f"not used: its driver does not fit this PyTorch's CUDA {cuda} (or the card is hidden by"
        " CUDA_VISIBLE_DEVICES)",
        "fault",
        f"update the driver, or: {reinstall('auto')}",
    )


def card_advice(capability: tuple[int, int], compiled: list[str]) -> Finding | None:
    """What to do where a card is seen that this PyTorch was not compiled for.

    Args:
        capability: the card's compute capability.
        compiled: what this PyTorch was compiled for, `["sm_75", "sm_80", "compute_120"]`. Code of
            one major version runs on its later minor ones; `compute_` is portable to all later.
    """
    for name in compiled:
        kind, _, number = name.rpartition("_")
        digits = re.match(r"\d+", number)
        if digits is None:
            continue
        major, minor = int(digits[0][:-1]), int(digits[0][-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return None
        if kind == "compute" and (major, minor) <= capability:
            return None
    # Builds from CUDA 12.8 on leave out Maxwell, Pascal and Volta: GTX 9xx and 10xx, P100, V100.
    backend = "cu126" if capability < (7, 5) else "auto"
    return Finding("card", "this PyTorch was not compiled for it", "fault", reinstall(backend))


def reinstall(backend: str) -> str:
    """The command that puts another build of PyTorch into this environment."""
    return f"uv pip install --reinstall-package torch torch --torch-backend={backend}"


def _on_windows() -> bool:
    return sys.platform == "win32"


def memory() -> Finding:
    """Main memory."""
    total, available = memory_bytes()
    facts = {"total_bytes": total, "available_bytes": available}
    if not total:
        return Finding("memory", "this system does not say how much there is", "note", facts=facts)
    text = f"{show_bytes(available)} available of {show_bytes(total)}"
    if available < LITTLE_MEMORY:
        return Finding("memory", text, "note", "close what needs memory", facts)
    return Finding("memory", text, facts=facts)


def speed(runtime: Runtime, seconds: float = 0.2) -> Iterator[Finding]:
    """The matrix-product rate in each precision, and which one is chosen."""
    device = runtime.device
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device.type != "cpu":
        names["float16"] = torch.float16
    rates = {name: matmul_rate(device, dtype, seconds) for name, dtype in names.items()}
    shown = ", ".join(f"{name} {_flops(rate)}" for name, rate in rates.items())
    yield Finding("products", f"{shown} on {device}", facts={"flops_per_second": rates})
    chosen, rate = runtime.precision, rates.get(runtime.precision, 0.0)
    fastest = max(rates, key=rates.__getitem__)
    text = f"{chosen}: {_why(runtime)}"
    if rates[fastest] > 1.25 * rate and fastest != "float16":
        yield Finding(
            "precision",
            f"{text}; {fastest} was measured faster",
            "note",
            f'train.precision = "{fastest}" may pay',
            {"precision": chosen},
        )
    else:
        yield Finding("precision", text, facts={"precision": chosen})


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def _why(runtime: Runtime) -> str:
    match runtime.device.type, runtime.precision:
        case "cuda", "bfloat16":
            return "compute capability 8.0 or newer"
        case "cuda", "float16":
            return "below compute capability 8.0 there is no bf16; gradients are scaled"
        case "cpu", "bfloat16":
            return "this processor multiplies bf16 (AVX-512 bf16 or AMX)"
        case "cpu", _:
            return "this processor has neither AVX-512 bf16 nor AMX"
        case _:
            return "what this device is trusted with"


def compiling(device: torch.device) -> Finding:
    """Whether torch.compile can be used; training goes without it too."""
    fault = compile_fault(device)
    if fault:
        return Finding("compile", f"not available: {fault}", "note", facts={"compile": False})
    return Finding("compile", "torch.compile is available", facts={"compile": True})


def disk() -> Iterator[Finding]:
    """Room where runs go and where prepared text is kept."""
    for name, place in (("disk, here", Path.cwd()), ("disk, cache", cache_folder())):
        there = next(folder for folder in (place, *place.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        facts = {"path": str(place), "free_bytes": free}
        text = f"{show_bytes(free)} free at {place}"
        if not os.access(there, os.W_OK):
            yield Finding(name, f"{place} may not be written", "note", _elsewhere(name), facts)
        elif free < NO_DISK:
            yield Finding(name, text, "fault", "free some space", facts)
        elif free < LITTLE_DISK:
            yield Finding(name, text, "note", "free some space before a long run", facts)
        else:
            yield Finding(name, text, facts=facts)


def _elsewhere(name: str) -> str:
    return "work in another folder" if "here" in name else "set SPARROW_CACHE to another folder"


def extras() -> Iterator[Finding]:
    """The optional packages that this version can use."""
    wanted = importlib.metadata.requires("sparrowlm") or []
    found: dict[str, str | None] = {}
    for requirement in wanted:
        if "extra ==" in requirement and (name := re.match(r"[\w.-]+", requirement)):
            try:
                found[name[0]] = importlib.metadata.version(name[0])
            except importlib.metadata.PackageNotFoundError:
                found[name[0]] = None
    if found:
        told = (f"{name} {version or 'absent'}" for name, version in found.items())
        yield Finding("optional", ", ".join(told), facts={"optional": found})


_TEXT = b"The sparrow is small, and no organ is missing. "
_SECONDS, _LEAST_STEPS, _MOST_STEPS = 2.0, 10, 50
_FALL = 0.5  # nats: a tenth of what ten steps bring on every machine tried


def self_test(runtime: Runtime) -> Finding:
    """Train for a moment by the real trainer, save, verify and load."""
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="sparrow-doctor-") as folder:
            losses = _train(Path(folder), runtime)
    except (SparrowError, RuntimeError, OSError) as fault:
        return Finding("self-test", f"failed: {fault}", "fault", "report this line as a bug")
    spent, first, last = time.perf_counter() - began, losses[0], losses[-1]
    facts = {"first_loss": first, "last_loss": last, "steps": len(losses), "seconds": spent}
    text = f"loss {first:.2f} to {last:.2f} in {len(losses)} steps, checkpoint saved and verified, "
    text += show_duration(spent)
    if not last < first - _FALL:  # also where one is not a number
        return Finding("self-test", f"{text}: it does not learn", "fault", facts=facts)
    return Finding("self-test", text, facts=facts)


def _train(folder: Path, runtime: Runtime) -> list[float]:
    """The losses of a tiny run of two seconds, or of ten steps where those take longer.

    Raises:
        RuntimeError: what was saved is not what is read back.
    """
    tokens = b"".join(bytes((value, 0)) for value in _TEXT * 100)  # uint16, little-endian
    files.write_bytes(folder / "train.bin", tokens)
    files.write_bytes(folder / "val.bin", tokens)
    recipe = Recipe(
        model=ModelConfig(vocab_size=256, d_model=64, n_layers=2, n_heads=2, max_seq_len=64),
        data=DataConfig(path=(str(folder),)),
        train=TrainConfig(
            length=f"{_MOST_STEPS} steps", batch_tokens=512, micro_batch_size=8, compile="off"
        ),
        optim=OptimConfig(name="adamw", lr=1e-2, warmup_steps=3),
    )
    dataset = open_dataset(folder)
    parts = build(resolve_recipe(recipe, dataset.vocab_size, runtime), dataset, runtime)
    losses, began = [], time.perf_counter()
    for row in parts.trainer.run():
        total, count = row.metrics["loss"]
        losses.append(total / count if count else math.nan)
        if row.step >= _LEAST_STEPS and time.perf_counter() - began > _SECONDS:
            break
    run = RunFolder(folder / "run")
    run.create()
    run.save(snapshot(parts), keep_last=1)
    files.verify(run.folder(run.newest()))
    saved = run.load(run.newest()).model
    for name, tensor in parts.model.state_dict().items():
        if not torch.equal(saved[name], tensor.cpu()):
            raise RuntimeError(f"{name} is not what was saved")
    return losses
