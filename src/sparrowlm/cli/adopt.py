"""`sparrow import PATH --out RUN`: move in from another project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg


def adopt(
    path: Annotated[Positional[Path], arg(metavar="PATH")],
    *,
    out: Path,
    tokenizer: str = "",
    meta: Path | None = None,
    n_heads: int = 0,
    max_seq_len: int = 0,
    mlp: Literal["", "gelu", "gelu_tanh", "relu"] = "",
    rope_theta: float = 0.0,
    norm_eps: float = 0.0,
    score_width: int = 0,
    experts_per_token: int = 0,
) -> None:
    """Turn another project's checkpoint into a run that generates the same tokens.

    nanoGPT's ckpt.pt, minimind's .pth, llama2.c's .bin, train-llm-from-scratch's .pt, and Hugging
    Face folders are recognized by themselves. docs/moving-in.md has a command for each.

    Args:
        path: A checkpoint, or a Hugging Face folder.
        out: The run folder to write.
        tokenizer: A tokenizer's folder, llama2.c's tokenizer.bin, gpt2 or bytes.
        meta: nanoGPT's meta.pkl, a vocabulary of characters.
        n_heads: Query heads, where the file does not tell.
        max_seq_len: Longest context, where the file does not tell.
        mlp: The MLP's activation, where it is not the project's usual one.
        rope_theta: Base of the rotary frequencies, likewise.
        norm_eps: Epsilon of the norms, likewise.
        score_width: train-llm-from-scratch before April 2025 divided scores by the root of the
            whole width: give d_model.
        experts_per_token: How many experts each token goes through, where the file does not tell.
    """
    from sparrowlm.config.units import show_count
    from sparrowlm.share.adopt import adopt as move_in
    from sparrowlm.share.asked import Asked

    asked = Asked(n_heads, max_seq_len, mlp, rope_theta, norm_eps, score_width, experts_per_token)
    done = move_in(path, out, asked, tokenizer=tokenizer, meta=meta)
    shape = done.config
    console = Console(highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    say(f"{done.project}, recognized by {done.why}")
    say(
        f"{show_count(done.parameters)} parameters: {shape.n_layers} blocks of {shape.d_model},"
        f" {shape.n_heads} heads, {shape.vocab_size} tokens, context {shape.max_seq_len}"
    )
    for note in done.notes:
        say(note, "yellow")
    say(str(out), "bold")
