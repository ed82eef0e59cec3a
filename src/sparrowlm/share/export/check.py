"""An export, loaded back: it has to compute what the run computes, or it is not published."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.errors import RunError
from sparrowlm.model.transformer import Transformer
from sparrowlm.share.export.source import Source
from sparrowlm.share.huggingface import read_huggingface
from sparrowlm.share.opening import Tensors
from sparrowlm.train.build import load_weights

LIMIT = 1e-4  # nats, between logits in float32
ROWS, LENGTH = 2, 64


def probe(config: ModelConfig) -> Tensor:
    """(2, T) ids of the whole vocabulary, the same for every model of a size."""
    generator = torch.Generator().manual_seed(0)
    size = (ROWS, min(LENGTH, config.max_seq_len))
    return torch.randint(0, config.vocab_size, size, generator=generator)


@torch.no_grad()
def logits_of(config: ModelConfig, weights: Tensors, ids: Tensor) -> Tensor:
    """(2, T, V) of our own model, in float32.

    Args:
        config: a resolved shape.
        weights: in any dtype.
        ids: (2, T).
    """
    model = Transformer(config).eval()
    load_weights(model, {name: value.float() for name, value in weights.items()})
    return model.logits(model(ids).hidden)


def check_hf(folder: Path, source: Source, kind: str) -> str:
    """Load a Hugging Face folder, with transformers where it is installed and knows the shape,
    otherwise with our own reader.

    Args:
        folder: as it was written.
        source: with the weights that were written.
        kind: its `model_type`.

    Returns:
        What was compared, and how much it differs.

    Raises:
        RunError: logits, ids or a rendered chat differ.
    """
    ids = probe(source.config)
    ours = logits_of(source.config, source.weights, ids)
    library = _transformers(kind)
    if library is not None:
        reader = f"transformers {library.__version__}"
        theirs = _their_logits(library, folder, ids)
        _check_tokenizer(library, folder, source, ids)
    else:
        reader = "Sparrow's own reader, for transformers is not installed or does not know it"
        opened, config = read_huggingface(folder)
        theirs = logits_of(resolve_model(config), opened.tensors, ids)
    difference = (ours - theirs).abs().max().item()
    if not difference <= LIMIT:  # NaN is a difference too
        raise RunError(
            f"the export does not compute what the run does: logits differ by {difference:.2g}"
            f" when loaded with {reader}",
            where=str(source.origins[-1].run.path),
            why="nothing was written; a difference above 1e-4 is no matter of rounding",
            fix="look for NaN in the run (sparrow report); otherwise this is a fault of Sparrow's"
            " or of that version",
        )
    return f"loaded back with {reader}: the largest logit difference is {difference:.2g}"


def _transformers(kind: str) -> Any:
    """The library, where it is there and knows a shape."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    return transformers if kind in transformers.CONFIG_MAPPING else None


@torch.no_grad()
def _their_logits(library: Any, folder: Path, ids: Tensor) -> Tensor:
    told = library.utils.logging
    was_shown = told.is_progress_bar_enabled()
    told.disable_progress_bar()
    try:
        model, info = library.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    finally:
        if was_shown:
            told.enable_progress_bar()
    wrong = [name for key in ("missing_keys", "unexpected_keys") for name in info.get(key) or ()]
    if wrong:
        raise RunError(f"transformers does not find or know {', '.join(sorted(wrong)[:5])}")
    return model.float().eval()(ids).logits


def _check_tokenizer(library: Any, folder: Path, source: Source, ids: Tensor) -> None:
    own = source.tokenizer
    theirs = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for row in ids.clamp(max=own.vocab_size - 1).tolist():
        text = own.decode(row)
        if theirs(text, add_special_tokens=False, verbose=False)["input_ids"] != own.encode(text):
            raise RunError("transformers' AutoTokenizer gives other ids", where=repr(text[:80]))
    if source.chat is not None:
        turns = [{"role": "user", "content": "a"}]
        wanted = own.decode(source.chat.prompt_ids(turns), specials=True)
        found = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if found != wanted:
            raise RunError(
                "transformers renders a chat otherwise", why=f"{found!r} and not {wanted!r}"
            )
