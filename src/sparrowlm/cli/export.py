"""`sparrow export RUN --to hf|gguf|ollama --out DIR`: take a run to other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg


def export(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    to: Literal["hf", "gguf", "ollama"],
    out: Path,
    dtype: str = "",
    adapter: Path | None = None,
    license: str = "",
) -> None:
    """Write a run in a form that other tools read, and read it back to be sure.

    docs/export.md shows each form in use.

    Args:
        run: A run folder, taken at its best step, or a checkpoint; a LoRA run is written merged.
        to: hf for transformers and vLLM, gguf for llama.cpp, ollama for that with a Modelfile.
        out: The folder to write; it must not be there yet.
        dtype: hf: float32 (if left out), bfloat16, float16. gguf, ollama: F32, F16 (if left out),
            BF16, Q8_0.
        adapter: A LoRA run, or a folder of PEFT's, to merge into the weights first.
        license: Of the weights, for the model card, such as apache-2.0; unknown if left out.
    """
    from sparrowlm.config.units import show_bytes
    from sparrowlm.share.export.writing import export as write

    console = Console(highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    done = write(
        run,
        to,
        out,
        dtype=dtype,
        adapter=adapter,
        license=license,
        say=lambda text: say(f"{text} …", "dim"),
    )
    for check in done.checks:
        say(check)
    for note in done.notes:
        say(note, "yellow")
    width = max(len(name) for name, _ in done.files)
    for name, size in done.files:
        say(f"  {name:<{width}}  {show_bytes(size)}")
    say(str(done.out), "bold")
