"""`sparrow merge RUN --out DIR`: a LoRA run's model as an ordinary run, or its changes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg


def merge(
    run: Annotated[Positional[Path], arg(metavar="RUN")], *, out: Path, only_adapter: bool = False
) -> None:
    """Write a LoRA run's model as an ordinary run, with its changes in its weights.

    Args:
        run: A LoRA run, which is taken at its best step, or one of its checkpoints.
        out: The folder to write.
        only_adapter: Write the changes alone, as PEFT reads them, and no weights.
    """
    from sparrowlm.share.adapters import extract_adapter, merge_run

    step = extract_adapter(run, out) if only_adapter else merge_run(run, out)
    console = Console(highlight=False)
    console.print(Text(f"step {step} of {run}"), soft_wrap=True)
    console.print(Text(str(out), "bold"), soft_wrap=True)
