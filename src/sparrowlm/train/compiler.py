"""Whether torch.compile can work here, found out in half a second instead of failing in a run."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from sparrowlm.runtime import env

# Each has been the fault of a run: no headers of Python (pytorch #129351), no OpenMP (#179135).
_PROBE = "#include <Python.h>\n#include <omp.h>\nint main() { return 0; }\n"


def compile_fault(device: torch.device) -> str:
    """What keeps torch.compile from working on a device; empty where nothing does.

    On a CPU inductor writes C++ against Python's and PyTorch's headers with OpenMP; on CUDA it
    needs Triton, and Triton a C compiler.
    """
    if device.type == "mps":
        return "torch.compile is not used on MPS"
    if device.type == "cuda":
        return _triton_fault(device)
    return _cpp_fault()


def _triton_fault(device: torch.device) -> str:
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs a card of compute capability 7.0 or newer"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if sys.platform != "win32" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "there is no C compiler (install gcc)"
    return ""


def _cpp_fault() -> str:
    headers = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "inductor"
    if not (headers / "cpp_prefix.h").is_file():
        # pytorch #179414: some CPU wheels leave them out.
        return "this build of PyTorch comes without its C++ headers"
    if sys.platform == "win32":
        return "" if shutil.which("cl") else "the compiler cl is not on the PATH"
    named = (env("CXX"), "g++", "clang++", "c++")
    compiler = next((found for name in named if name and (found := shutil.which(name))), None)
    if compiler is None:
        return "there is no C++ compiler (install g++)"
    return _try(compiler)


def _try(compiler: str) -> str:
    """Compile a few lines; the compiler's first complaint, or nothing."""
    # Apple's clang has no -fopenmp, and PyTorch brings what it needs there.
    probe = _PROBE.replace("#include <omp.h>\n", "") if sys.platform == "darwin" else _PROBE
    include = sysconfig.get_paths()["include"]
    command = [compiler, "-x", "c++", "-fsyntax-only", f"-I{include}", "-"]
    try:
        done = subprocess.run(
            command, input=probe, capture_output=True, encoding="utf-8", timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        return f"{compiler} does not run: {fault}"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    return f"{compiler} fails: {lines[0].strip() if lines else 'it says nothing'}"
