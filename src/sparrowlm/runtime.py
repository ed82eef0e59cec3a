"""The machine, decided once and passed on: device, precision, seed, rank and world.

The only module that reads environment variables.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sparrowlm import __version__
from sparrowlm.errors import ConfigError, EnvironmentFault

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Runtime:
    """Where a process computes, and which part of the work is its own."""

    device: torch.device
    precision: str  # float32, bfloat16, float16 or float64: of matrix products
    rank: int = 0
    world_size: int = 1

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype under autocast, or None where products run in the weights' own."""
        return _DTYPES[self.precision] if self.precision in ("bfloat16", "float16") else None

    @property
    def weight_dtype(self) -> torch.dtype:
        """Weights and optimizer state stay float32 under autocast."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def detect(device: str = "auto", precision: str = "auto") -> Runtime:
    """Choose the device and precision of this process.

    Args:
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto takes what the device supports and what pays.

    Raises:
        ConfigError: an unknown device.
        EnvironmentFault: a device that this machine does not have.
    """
    rank, world_size = env_int("RANK", 0), env_int("WORLD_SIZE", 1)
    chosen = _device(device, env_int("LOCAL_RANK", 0))
    return Runtime(
        device=chosen,
        precision=best_precision(chosen) if precision == "auto" else precision,
        rank=rank,
        world_size=world_size,
    )


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as fault:
        raise ConfigError(
            f'"{name}" is not a device', where="train.device", fix="auto, cpu, cuda or mps"
        ) from fault
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise EnvironmentFault(
            f"this machine has no usable {device.type}",
            where="train.device",
            fix='train.device = "auto" takes what there is; `sparrow doctor` shows it',
        )
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    return device


def best_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it, fp16 on older NVIDIA cards, else float32.

    By compute capability 8.0 and not by `is_bf16_supported()`, which older cards answer by
    emulation. On CPUs by AVX-512 bf16 or AMX: without them bf16 products are four times slower
    than float32 ones (measured on a Cascade Lake Xeon: 50 against 230 GFLOP/s).
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    if device.type == "cpu" and cpu_has_bf16():
        return "bfloat16"
    return "float32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively."""
    cpu = getattr(torch, "cpu", None)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(cpu, probe)()) for probe in probes if hasattr(cpu, probe))


def env(name: str, default: str = "") -> str:
    """An environment variable; nothing else reads them."""
    return os.environ.get(name, default)


def env_default(name: str, value: str) -> None:
    """Set an environment variable for other people's code, unless the user has set it."""
    os.environ.setdefault(name, value)


def env_int(name: str, default: int) -> int:
    """An environment variable that holds an integer, as torchrun sets them."""
    text = env(name)
    try:
        return int(text) if text else default
    except ValueError as fault:
        raise EnvironmentFault(f'"{text}" is not a number', where=f"${name}") from fault


def cache_folder() -> Path:
    """Where prepared text is kept between runs: `$SPARROW_CACHE`, or the system's own place."""
    if chosen := env("SPARROW_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(env("LOCALAPPDATA") or Path.home()) / "sparrow"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sparrow"
    return Path(env("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparrow"


def derived_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, such as (seed, step, micro-step, rank).

    splitmix64 finalizer over the parts (Steele, Lea & Flood 2014): a change in any of them
    changes half of the bits, so neighbours do not share a stream.

    >>> derived_seed(1, 2) != derived_seed(2, 1)
    True
    """
    state, wide = 0x9E3779B97F4A7C15, (1 << 64) - 1
    for part in parts:
        state = (state ^ (part & wide)) * 0xBF58476D1CE4E5B9 & wide
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & wide
        state ^= state >> 31
    return state >> 1


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The matrix-product ceiling: FLOP/s of the best of a few square products.

    The measured stand-in for a data sheet's peak, which on most CPUs nobody can look up.

    Args:
        device: where to multiply.
        dtype: of both factors.
        seconds: how long to measure in all.
    """
    best, sizes = 0.0, (1024, 2048, 4096) if device.type == "cuda" else (512, 1024)
    for size in sizes:
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        torch.matmul(left, right)
        synchronize(device)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / len(sizes) or done < 3:
            for _ in range(8 if device.type != "cpu" else 1):
                torch.matmul(left, right)
                done += 1
            synchronize(device)
            best = max(best, 2 * size**3 * done / (time.perf_counter() - began))
    return best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks; the tensor itself where there is one."""
    if dist.is_available() and dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def machine() -> dict[str, str | int]:
    """What a figure must be read with: processor, cores, memory, device, versions."""
    facts: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "sparrow": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> tuple[int, int]:
    """(total, available) bytes of main memory; a container's limit counts. Zeros where unknown.

    Available is what a new process could take without swapping: caches that the system gives
    back are part of it.
    """
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total * _darwin_free_percent() // 100
    facts = _kib_table(Path("/proc/meminfo"))
    total, available = facts.get("MemTotal", 0), facts.get("MemAvailable", 0)
    limit, used = _container_memory()
    return (
        (min(total, limit), min(available, max(limit - used, 0))) if limit else (total, available)
    )


def device_memory(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes of the device's memory; main memory for a CPU, and for MPS, which
    shares it. Zeros where unknown."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    return memory_bytes()


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """The most memory held so far: of a CUDA device by this process's tensors, else of this
    process in main memory. 0 where the system does not say."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return _windows_peak()
    # Linux hands ru_maxrss of whoever started a process down to it; VmHWM is its own.
    own = _kib_table(Path("/proc/self/status")).get("VmHWM", 0)
    if own:
        return own
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def _kib_table(path: Path) -> dict[str, int]:
    """The `Name:  123 kB` lines of a /proc file, in bytes; empty where there is no such file."""
    if not path.is_file():
        return {}
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[2:] == ["kB"]}


def _container_memory() -> tuple[int, int]:
    """(limit, used) of this control group, version 2 or 1; (0, 0) where none limits."""
    for folder, limit_name, used_name, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            limit = (Path(folder) / limit_name).read_text(encoding="ascii").strip()
            used = int((Path(folder) / used_name).read_text(encoding="ascii"))
            stat = (Path(folder) / "memory.stat").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < 1 << 60:  # version 1 says "none" as 2^63 less a page
            cached = int(stat[stat.index(cache) + 1]) if cache in stat else 0
            return int(limit), max(used - cached, 0)
    return 0, 0


def _darwin_free_percent() -> int:
    """What `memory_pressure` prints as the system-wide free percentage."""
    import ctypes

    level, size = ctypes.c_int(0), ctypes.c_size_t(4)
    call = ctypes.CDLL(None).sysctlbyname
    failed = call(b"kern.memorystatus_level", ctypes.byref(level), ctypes.byref(size), None, 0)
    return 0 if failed else level.value


def _windows_memory() -> tuple[int, int]:
    """GlobalMemoryStatusEx."""
    if sys.platform != "win32":
        return 0, 0
    import ctypes

    names = ["total", "available", "page", "page_free", "virtual", "virtual_free", "extended"]

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in names),
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.total, status.available


def _windows_peak() -> int:
    """PeakWorkingSetSize of GetProcessMemoryInfo."""
    if sys.platform != "win32":
        return 0
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("size", ctypes.c_uint32),
            ("faults", ctypes.c_uint32),
            ("peak", ctypes.c_size_t),
            *((f"other_{number}", ctypes.c_size_t) for number in range(7)),
        ]

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel = ctypes.windll.kernel32
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    own = kernel.GetCurrentProcess()
    kernel.K32GetProcessMemoryInfo(own, ctypes.byref(counters), counters.size)
    return counters.peak
