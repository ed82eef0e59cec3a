"""Sparrow: from raw text to a language model of your own, on the machine you have.

>>> import sparrowlm
>>> bird = sparrowlm.load("runs/python")
>>> print(bird.generate("def area(width, height):"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sparrowlm.api import LanguageModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    run: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    adapter: str | Path | None = None,
) -> LanguageModel:
    """A trained run, to write, talk, judge and embed with.

    Args:
        run: a run folder, which is taken at its best step, or one of its checkpoints.
        device: auto, cpu, cuda or mps.
        precision: auto, float32, bfloat16, float16 or float64.
        adapter: a LoRA run on this base, or an adapter's folder of PEFT's.

    Returns:
        A `sparrowlm.api.LanguageModel`: `generate`, `chat`, `stream`, `logprobs`, `embed`.

    Raises:
        RunError: no run there, or an adapter for another model.

    >>> sparrowlm.load("runs/python").generate("import ", max_tokens=20)
    """
    from sparrowlm import api  # torch is not for whoever only wants a version

    return api.load(run, device=device, precision=precision, adapter=adapter)
